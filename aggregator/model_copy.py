"""ModelCopy: a model that is decoded for its site is also written to a file, for the change that follows."""

from __future__ import annotations

from pathlib import Path

from tensorbus.codecs.base import Sink
from tensorbus.codecs.item import ItemSpec
from tensorbus.codecs.serializers.safetensors import whole_view
from tensorbus.streaming.files import SafetensorsSink


class ModelCopy(Sink):
    """Decodes into one sink, and copies the tensors into a file besides.

    The file has whole tensors only, under all of their names; scalars and byte strings are sent anew anyway.

    Args:
        sink: what makes the container; None if only the file is wanted.
        path: of the file, which appears when it is complete.
    """

    def __init__(self, sink: Sink | None, path: Path) -> None:
        self._sink = sink
        self._file = SafetensorsSink(path)
        self._specs: dict[str, ItemSpec] = {}
        self._begun = False
        self._taken = memoryview(b"")

    def begin(self, spec: ItemSpec) -> None:
        self._specs[spec.name] = spec
        if self._sink is not None:
            self._sink.begin(spec)

    def buffer(self, spec: ItemSpec, offset: int, count: int) -> memoryview:
        if self._sink is not None:
            self._taken = self._sink.buffer(spec, offset, count)
        elif spec.kind == "tensor":
            self._taken = self._opened().buffer(spec, offset, count)
        else:
            self._taken = memoryview(bytearray(count * spec.dtype.itemsize))
        return self._taken

    def commit(self, spec: ItemSpec, offset: int, count: int) -> None:
        if spec.kind == "tensor":
            if self._sink is not None:
                self._opened().buffer(spec, offset, count)[:] = self._taken.cast("B")
            self._opened().commit(spec, offset, count)
        self._taken = memoryview(b"")
        if self._sink is not None:
            self._sink.commit(spec, offset, count)

    def finish(self) -> object:
        self._opened().finish()
        return None if self._sink is None else self._sink.finish()

    def abort(self) -> None:
        self._file.abort()
        if self._sink is not None:
            self._sink.abort()

    def _opened(self) -> SafetensorsSink:
        """The file; when it is first needed, all items are known."""
        if not self._begun:
            self._begun = True
            for spec in self._specs.values():
                if spec.kind == "tensor" and (
                    spec.view is None or whole_view(spec, self._specs[spec.view.of])
                ):
                    self._file.begin(spec)
        return self._file
