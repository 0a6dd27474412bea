"""Source: anything that can be published, as named items whose values are read slice by slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

from tensorbus.codecs import registry
from tensorbus.codecs.dtypes import dtype
from tensorbus.codecs.item import Item, ItemSpec
from tensorbus.codecs.memory import MemoryItem
from tensorbus.errors import UnsupportedContainer

from .raw import BODY, CONTAINER

SAFETENSORS = "safetensors"
"""Kind of the container that a safetensors file is, and its suffix."""


@runtime_checkable
class Source(Protocol):
    """Items of one container.

    Attributes:
        kind: of the container, as it stands in the open frame.
        metadata: texts that belong to the container.
    """

    @property
    def kind(self) -> str: ...

    @property
    def metadata(self) -> Mapping[str, str]: ...

    def items(self) -> Sequence[Item]:
        """The items in the container's order, values unread."""
        ...

    def close(self) -> None:
        """Release what was opened to read them."""
        ...


@dataclass(frozen=True)
class ItemSource:
    """Items that somebody has already, with the kind of container they make."""

    kind: str
    sequence: Sequence[Item]
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])

    def items(self) -> Sequence[Item]:
        """The items as they were given."""
        return self.sequence

    def close(self) -> None:
        """There is nothing to release."""


def open_source(container: object) -> Source:
    """The source for ``container``.

    Args:
        container: the path of a ``.safetensors`` file or of a PEFT adapter's folder, a byte string, a torch
            Module or its state_dict, a mapping of arrays, or a Source.

    Raises:
        UnsupportedContainer: it is none of these.
        UnsupportedDtype, InvalidName: naming the entry that cannot be sent.
        StorageError: the file cannot be read.
    """
    if isinstance(container, (str, PathLike)):
        return _open_file(fspath(cast("str | PathLike[str]", container)))
    if isinstance(container, (bytes, bytearray)):
        spec = ItemSpec(BODY, dtype("uint8"), (len(container),), "bytes")
        return ItemSource(CONTAINER, [MemoryItem(spec, memoryview(container))])
    if isinstance(container, Source):
        return container
    serializer = registry.serializer_for(container)
    return ItemSource(serializer.name, serializer.items(container))


def _open_file(path: str) -> Source:
    if Path(path).is_dir():
        from .adapter_folders import AdapterSource

        return AdapterSource(path)
    if not path.endswith(f".{SAFETENSORS}"):
        raise UnsupportedContainer(
            f"{path!r} is not the path of a .{SAFETENSORS} file, nor of the folder of a PEFT adapter"
        )
    from .files import SafetensorsSource  # reading files is not needed for containers in memory

    return SafetensorsSource(path)
