"""Item: one named tensor, scalar or byte string of a container."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from math import prod
from typing import Literal

from .dtypes import DType

ItemKind = Literal["tensor", "scalar", "bytes"]
"""``scalar`` is a msgpack value (None, bool, int, float, str), ``bytes`` is raw; both have dtype uint8."""

NONE_CODEC: dict[str, object] = {"name": "none"}


@dataclass(frozen=True, slots=True)
class View:
    """Where an item lies inside another item that shares its storage.

    ``offset`` and ``strides`` count elements of the item called ``of``, which is sent; this one is not.
    """

    of: str
    offset: int
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ItemSpec:
    """What is known of an item without its values; an entry of the manifest.

    Attributes:
        name: unique within the container; any text of 1 to 1024 characters without control characters.
        dtype: the *original* element type, which is what the receiver gets back.
        shape: of the original; ``()`` is 0-d, and an extent of 0 is an empty tensor.
        codec: configuration of the quantizer that encodes it, e.g. ``{"name": "nf4", "blocksize": 64}``.
        view: set when the item shares the storage of another; it then has no frames.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    kind: ItemKind = "tensor"
    codec: dict[str, object] = field(default_factory=lambda: dict(NONE_CODEC))
    view: View | None = None

    @property
    def count(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the original values in bytes."""
        return self.count * self.dtype.itemsize


class Item(ABC):
    """An ItemSpec whose values can be read slice by slice, wherever they are: memory, a file, a GPU."""

    spec: ItemSpec

    stable: bool = False
    """Whether what ``read`` returns is the container's own memory, which stays as long as the container does;
    such slices are sent from where they lie."""

    concurrent: bool = False
    """Whether several threads may call ``read_into`` at once, also of different items of the same source."""

    device: str | None = None
    """Where the values lie, as torch names it (``cuda:0``), if ``device_slice`` gives them there."""

    @abstractmethod
    def read(self, offset: int, count: int) -> memoryview:
        """The raw bytes of elements ``offset`` to ``offset + count`` in C order, original dtype.

        No copy is made where the values already lie so in memory. The view is valid until the next
        ``read`` of any item of the same source.
        """

    def read_into(self, offset: int, count: int, out: memoryview) -> None:
        """Write the bytes that ``read`` would return into ``out``, which has exactly their size."""
        out[:] = self.read(offset, count).cast("B")

    def device_slice(self, offset: int, count: int) -> object:
        """The same elements as a flat tensor on ``device``; only where there is one, and by any thread."""
        raise NotImplementedError(f"{self.spec.name!r} lies on no device")
