"""TensorRoom: what all kinds of sums have in common, room for each tensor of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tensorbus.codecs.item import ItemSpec
from tensorbus.streaming.decoder import SliceEvent
from tensorbus.streaming.specs import naming

from .reducers.base import Workspace
from .room import Room


def tensors_of(specs: Sequence[ItemSpec]) -> dict[str, ItemSpec]:
    """The tensors that have values of their own, by name."""
    return {spec.name: spec for spec in specs if spec.kind == "tensor" and spec.view is None}


class TensorRoom:
    """Room for the tensors of a model, in memory or in a file.

    Args:
        specs: of the tensors.
        sizes: bytes for each of them.
    """

    def __init__(self, specs: Mapping[str, ItemSpec], sizes: Mapping[str, int], workspace: Workspace) -> None:
        self._specs = specs
        self._room = Room(sizes, workspace.folder if workspace.accumulator == "file" else None)
        self._divided: set[str] = set()
        self._kept: set[str] = set()

    @property
    def nbytes(self) -> int:
        """Bytes of all sums."""
        return self._room.nbytes

    def reset(self) -> None:
        """All sums to zero, in place. Raises as ``Room.reset``."""
        self._divided.clear()
        self._kept.clear()
        self._room.reset()

    def close(self) -> None:
        """Give the room back."""
        self._room.close()

    def keep(self, name: str, event: SliceEvent) -> None:
        """The tensor is what its slices decode to, bit for bit; nothing was added to it.

        Raises:
            PayloadMismatch: see ``SliceCodec.decode``.
        """
        self._kept.add(name)
        size = event.spec.dtype.itemsize
        out = self._room.part(name)[event.offset * size : (event.offset + event.count) * size]
        with naming(event.spec.name):
            event.codec.decode(event.payload, event.offset, out.data)
