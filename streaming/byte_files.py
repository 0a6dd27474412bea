"""Files as byte strings: published and received without being loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from tensorbus.codecs.base import Sink
from tensorbus.codecs.dtypes import dtype
from tensorbus.codecs.item import Item, ItemSpec
from tensorbus.errors import UnsupportedContainer

from .buffers import SliceBuffer
from .files import FileItem
from .part_file import FileReader, PartFile
from .raw import BODY, CONTAINER


class BytesFileSource:
    """Any file, published as one byte string called ``body``.

    Raises:
        StorageError: the file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = FileReader(path)

    @property
    def kind(self) -> str:
        """The container kind of byte strings."""
        return CONTAINER

    @property
    def metadata(self) -> Mapping[str, str]:
        """None: the file's name is its owner's affair."""
        return {}

    def items(self) -> Sequence[Item]:
        """The one item."""
        spec = ItemSpec(BODY, dtype("uint8"), (self._file.size,), "bytes")
        return [FileItem(spec, self._file, 0, SliceBuffer())]

    def close(self) -> None:
        """Close the file; may be called twice."""
        self._file.close()


class BytesFileSink(Sink):
    """Writes the one byte string of a message to ``path``, which appears when it is complete.

    Raises (from its methods):
        UnsupportedContainer: the message holds anything but one byte string.
        StorageFull, StorageError: the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        self._file: PartFile | None = None
        self._buffer = SliceBuffer()

    def begin(self, spec: ItemSpec) -> None:
        if spec.kind != "bytes" or self._file:
            raise UnsupportedContainer(f"the message is not one byte string: it holds {spec.name!r}")
        self._file = PartFile(self._path, spec.nbytes)

    def buffer(self, spec: ItemSpec, offset: int, count: int) -> memoryview:
        return self._buffer.take(count)

    def commit(self, spec: ItemSpec, offset: int, count: int) -> None:
        self._opened().write(self._buffer.take(count), offset)

    def finish(self) -> object:
        return self._opened().finish()

    def abort(self) -> None:
        if self._file:
            self._file.abort()

    def _opened(self) -> PartFile:
        if not self._file:
            raise UnsupportedContainer("the message holds no byte string")
        return self._file
