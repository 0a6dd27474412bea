"""Safetensors files, published and received without being loaded.

A tensor is read in slices from where it lies in the file, and received slices are written where they belong;
one buffer of the size of a slice is all the memory that either takes, whatever the size of file and tensor.
What the header says and how it is built is in `tensorbus.codecs.serializers.safetensors`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike

from tensorbus.codecs.base import Sink
from tensorbus.codecs.item import Item, ItemSpec, View
from tensorbus.codecs.serializers.safetensors import (
    LENGTH_BYTES,
    build_header,
    header_length,
    parse_header,
    whole_view,
)
from tensorbus.codecs.sharing import contiguous_strides
from tensorbus.errors import ManifestMismatch, TensorbusError, UnsupportedContainer

from .buffers import SliceBuffer
from .part_file import FileReader, PartFile
from .sources import SAFETENSORS


class FileItem(Item):
    """An item whose values lie in a file in C order, from byte ``start`` on."""

    concurrent = True

    def __init__(self, spec: ItemSpec, file: FileReader, start: int, buffer: SliceBuffer) -> None:
        self.spec = spec
        self._file = file
        self._start = start
        self._buffer = buffer

    def read(self, offset: int, count: int) -> memoryview:
        out = self._buffer.take(count * self.spec.dtype.itemsize)
        self.read_into(offset, count, out)
        return out

    def read_into(self, offset: int, count: int, out: memoryview) -> None:
        self._file.read_into(out, self._start + offset * self.spec.dtype.itemsize)


class SafetensorsSource:
    """The tensors of a safetensors file, in the order in which their values lie in it.

    Tensors that were saved as one and named twice (``save_model``) are views here, and arrive shared.

    Raises:
        StorageError: the file cannot be read.
        CodecError, LimitExceeded, InvalidName, UnsupportedDtype: it is no valid safetensors file.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self._file = FileReader(path)
        try:
            self._header = parse_header(self._read(LENGTH_BYTES, self._length()), self._file.size)
        except TensorbusError as problem:
            self._file.close()
            raise type(problem)(f"{str(self._file.path)!r}: {problem}") from problem
        self._buffer = SliceBuffer()

    @property
    def kind(self) -> str:
        """The container kind of safetensors files."""
        return SAFETENSORS

    @property
    def identity(self) -> str:
        """Another one when the file is replaced or written to."""
        return self._file.identity

    @property
    def metadata(self) -> Mapping[str, str]:
        """``__metadata__`` of the file, without the names of shared tensors."""
        return self._header.metadata

    def items(self) -> Sequence[Item]:
        """The tensors, values unread."""
        first = self._header.size
        return [
            FileItem(entry.spec, self._file, first + entry.start, self._buffer)
            for entry in self._header.entries
        ]

    def close(self) -> None:
        """Close the file; may be called twice."""
        self._file.close()

    def _length(self) -> int:
        return header_length(self._read(0, min(LENGTH_BYTES, self._file.size)), self._file.size)

    def _read(self, position: int, count: int) -> memoryview:
        out = memoryview(bytearray(count))
        self._file.read_into(out, position)
        return out


class SafetensorsSink(Sink):
    """Writes the tensors of a message to ``path``, which appears when all of them are there.

    A tensor that is another one under a second name is written once, as ``save_model`` does. One that is a
    contiguous part of another becomes a tensor of its own.

    Args:
        path: what was there before is replaced at the end.
        metadata: for ``__metadata__``.

    Raises (from its methods):
        UnsupportedContainer: naming an item that is no tensor, or a view that the format cannot hold.
        UnsupportedDtype: naming an item whose dtype the format lacks.
        StorageFull, StorageError: the file cannot be written.
    """

    def __init__(self, path: str | PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
        self._path = path
        self._metadata = dict(metadata or {})
        self._specs: dict[str, ItemSpec] = {}
        self._parts: dict[str, View] = {}
        self._starts: dict[str, int] = {}
        self._file: PartFile | None = None
        self._buffer = SliceBuffer()

    def begin(self, spec: ItemSpec) -> None:
        if spec.kind != "tensor":
            raise UnsupportedContainer(
                f"{spec.name!r} is a {spec.kind}; a safetensors file holds tensors only"
            )
        if self._file:
            raise ManifestMismatch(f"{spec.name!r} is announced after values; the file's header comes first")
        self._specs[spec.name] = spec

    def buffer(self, spec: ItemSpec, offset: int, count: int) -> memoryview:
        self._opened()
        return self._buffer.take(count * spec.dtype.itemsize)

    def commit(self, spec: ItemSpec, offset: int, count: int) -> None:
        size = spec.dtype.itemsize
        self._opened().write(self._buffer.take(count * size), self._starts[spec.name] + offset * size)

    def finish(self) -> object:
        """The path of the file, which is complete and on stable storage."""
        file = self._opened()
        for name, view in self._parts.items():
            spec = self._specs[name]
            start = self._starts[view.of] + view.offset * spec.dtype.itemsize
            file.copy(start, self._starts[name], spec.nbytes, self._buffer.take(1 << 20))
        return file.finish()

    def abort(self) -> None:
        if self._file:
            self._file.abort()

    def _opened(self) -> PartFile:
        """The file; when it is first needed, its header says what will be in it."""
        if self._file:
            return self._file
        for spec in self._specs.values():
            if spec.view and not whole_view(spec, self._specs[spec.view.of]):
                self._parts[spec.name] = _contiguous(spec, spec.view)
        specs = [
            replace(spec, view=None) if spec.name in self._parts else spec for spec in self._specs.values()
        ]
        if any(spec.view for spec in specs):
            # Without a format, transformers refuses a file that has metadata.
            self._metadata.setdefault("format", "pt")
        start, header = build_header(specs, self._metadata)
        self._starts = {entry.spec.name: header.size + entry.start for entry in header.entries}
        self._file = PartFile(self._path, header.size + header.values)
        self._file.write(memoryview(start), 0)
        return self._file


def _contiguous(spec: ItemSpec, view: View) -> View:
    if view.strides != contiguous_strides(spec.shape):
        raise UnsupportedContainer(
            f"{spec.name!r} is a strided view of {view.of!r}; a safetensors file cannot hold it, "
            "so publish a contiguous copy"
        )
    return view
