"""Element types by name, as PyTorch spells them, without importing PyTorch.

The names are what travels on the wire. The table is closed: an unknown name is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tensorbus.errors import UnsupportedDtype

Kind = Literal["float", "int", "bool", "complex"]


@dataclass(frozen=True, slots=True)
class DType:
    """An element type: its PyTorch name, size in bytes and kind."""

    name: str
    itemsize: int
    kind: Kind

    def __str__(self) -> str:
        return self.name


_TABLE: tuple[DType, ...] = (
    DType("float64", 8, "float"),
    DType("float32", 4, "float"),
    DType("float16", 2, "float"),
    DType("bfloat16", 2, "float"),
    DType("float8_e4m3fn", 1, "float"),
    DType("float8_e4m3fnuz", 1, "float"),
    DType("float8_e5m2", 1, "float"),
    DType("float8_e5m2fnuz", 1, "float"),
    DType("float8_e8m0fnu", 1, "float"),
    DType("float4_e2m1fn_x2", 1, "float"),
    DType("complex32", 4, "complex"),
    DType("complex64", 8, "complex"),
    DType("complex128", 16, "complex"),
    DType("int8", 1, "int"),
    DType("int16", 2, "int"),
    DType("int32", 4, "int"),
    DType("int64", 8, "int"),
    DType("uint8", 1, "int"),
    DType("uint16", 2, "int"),
    DType("uint32", 4, "int"),
    DType("uint64", 8, "int"),
    DType("bool", 1, "bool"),
)

DTYPES: dict[str, DType] = {entry.name: entry for entry in _TABLE}


def dtype(name: str) -> DType:
    """The element type called ``name``.

    Raises:
        UnsupportedDtype: the name is not in the table.
    """
    try:
        return DTYPES[name]
    except KeyError:
        raise UnsupportedDtype(f"unknown dtype {name!r}; known: {', '.join(DTYPES)}") from None
