"""Items whose bytes are at hand: scalars, byte strings and anything else that is one buffer.

A scalar travels as its msgpack value, a byte string as itself; both count as uint8.
"""

from __future__ import annotations

from typing import Any, cast

import msgpack  # pyright: ignore[reportMissingTypeStubs]

from tensorbus.errors import LimitExceeded, PayloadMismatch, UnsupportedContainer

from .dtypes import dtype
from .item import Item, ItemKind, ItemSpec

Scalar = None | bool | int | float | str

# It has neither annotations nor stubs.
_msgpack = cast(Any, msgpack)

_UINT8 = dtype("uint8")


class MemoryItem(Item):
    """An item that is one buffer in C order."""

    stable = True

    def __init__(self, spec: ItemSpec, data: memoryview) -> None:
        self.spec = spec
        self._data = data

    def read(self, offset: int, count: int) -> memoryview:
        size = self.spec.dtype.itemsize
        return self._data[offset * size : (offset + count) * size]


def value_item(name: str, value: object) -> Item | None:
    """The item for a scalar or a byte string; None if ``value`` is neither.

    Raises:
        UnsupportedContainer: an integer of more than 64 bits, or a text that is no Unicode.
    """
    if value is None or type(value) in (bool, int, float, str):
        kind: ItemKind = "scalar"
        try:
            data = cast(bytes, _msgpack.packb(value))
        except (OverflowError, ValueError) as error:
            raise UnsupportedContainer(f"the value of {name!r} cannot be sent: {error}") from error
    elif isinstance(value, (bytes, bytearray)):
        kind, data = "bytes", value
    else:
        return None
    return MemoryItem(ItemSpec(name, _UINT8, (len(data),), kind), memoryview(data))


class ValueBuffer:
    """Room for one arriving scalar or byte string."""

    def __init__(self, spec: ItemSpec) -> None:
        self._spec = spec
        try:
            self._data = bytearray(spec.nbytes)
        except (MemoryError, OverflowError) as error:
            raise LimitExceeded(f"no memory for the {spec.nbytes} bytes of {spec.name!r}") from error

    def bytes_at(self, offset: int, count: int) -> memoryview:
        """The writable bytes ``offset`` to ``offset + count``."""
        return memoryview(self._data)[offset : offset + count]

    def value(self) -> Scalar | bytes:
        """The value, once its bytes are complete.

        Raises:
            PayloadMismatch: the bytes are not one scalar in msgpack.
        """
        if self._spec.kind == "bytes":
            return bytes(self._data)
        try:
            value: object = _msgpack.unpackb(self._data)
        except (ValueError, RecursionError, _msgpack.UnpackException) as error:
            raise PayloadMismatch(f"the scalar {self._spec.name!r} is not one msgpack value") from error
        if value is not None and not isinstance(value, (bool, int, float, str)):
            raise PayloadMismatch(f"the scalar {self._spec.name!r} is a {type(value).__name__}")
        return value
