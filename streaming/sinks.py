"""Which sink makes a container of an arriving message."""

from __future__ import annotations

from importlib.util import find_spec
from os import PathLike, fspath, sep
from pathlib import Path

from tensorbus.codecs import registry
from tensorbus.codecs.base import Serializer, Sink
from tensorbus.codecs.item import ItemSpec
from tensorbus.codecs.memory import ValueBuffer
from tensorbus.errors import UnsupportedContainer

from .adapter_folders import CONFIG, AdapterSink
from .byte_files import BytesFileSink
from .files import SafetensorsSink
from .headers import Envelope
from .raw import CONTAINER
from .sources import SAFETENSORS


def serializer_of(container: str) -> Serializer:
    """What makes tensors or arrays of a message whose container is of this kind.

    A state_dict of torch, and a safetensors file, become arrays of numpy where torch is not installed; a
    plain byte string is a container of one.

    Raises:
        UnknownCodec: no serializer of this kind is installed.
    """
    if container in ("torch", SAFETENSORS):
        container = "torch" if find_spec("torch") else "numpy"
    return registry.serializer("numpy" if container == CONTAINER else container)


def open_sink(envelope: Envelope, into: object | None = None) -> Sink:
    """The sink for a message that is to be held in memory.

    Without ``into`` the container is of the publisher's kind, or what `serializer_of` says instead. With
    ``into`` its tensors are overwritten, whatever the kind.

    Raises:
        UnknownCodec: no serializer for the publisher's kind is installed.
        UnsupportedContainer: nothing can be loaded into ``into``.
    """
    if into is not None:
        return registry.serializer_for(into).sink(into)
    if envelope.container == CONTAINER:
        return BytesSink()
    return serializer_of(envelope.container).sink()


def open_file_sink(envelope: Envelope, path: str | PathLike[str]) -> Sink:
    """The sink for a message that is to be a file: a byte string as it is, anything else as safetensors.

    A PEFT adapter becomes a folder, unless ``path`` ends in ``.safetensors``.

    Raises:
        UnsupportedContainer: ``path`` is that of a folder, and the message no adapter.
    """
    name = fspath(path)
    if CONFIG in envelope.metadata and not name.endswith(f".{SAFETENSORS}"):
        return AdapterSink(path, envelope.metadata)
    if name.endswith(sep) or Path(path).is_dir():
        raise UnsupportedContainer(
            f"{name!r} is a folder, and the message no PEFT adapter: give the path of a file"
        )
    if envelope.container == CONTAINER:
        return BytesFileSink(path)
    return SafetensorsSink(path, envelope.metadata)


class BytesSink(Sink):
    """Gives back the one byte string of a message."""

    def __init__(self) -> None:
        self._buffer: ValueBuffer | None = None

    def begin(self, spec: ItemSpec) -> None:
        if spec.kind != "bytes" or self._buffer is not None:
            raise UnsupportedContainer(f"the message is not one byte string: it holds {spec.name!r}")
        self._buffer = ValueBuffer(spec)

    def buffer(self, spec: ItemSpec, offset: int, count: int) -> memoryview:
        assert self._buffer is not None, "begin comes first"
        return self._buffer.bytes_at(offset, count)

    def commit(self, spec: ItemSpec, offset: int, count: int) -> None:
        """The bytes are where they belong already."""

    def finish(self) -> object:
        if self._buffer is None:
            raise UnsupportedContainer("the message holds no byte string")
        return self._buffer.value()

    def abort(self) -> None:
        self._buffer = None
