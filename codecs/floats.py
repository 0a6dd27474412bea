"""Original values to float32 and back, a piece at a time, for the quantizers and for whoever aggregates.

bfloat16 has no numpy dtype: its bits are handled as uint16, which are the upper half of a float32.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from tensorbus.errors import NonFiniteValues, PayloadMismatch, UnsupportedDtype

from .base import Accumulator
from .dtypes import DType
from .scratch import scratch

FloatArray = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]

QUANTISABLE = frozenset({"float64", "float32", "float16", "bfloat16"})
"""Names of the dtypes that ``widen`` and ``narrow`` know."""

_NUMPY: dict[str, type[np.generic]] = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
}


def as_bytes(buffer: memoryview) -> Bytes:
    """The buffer as an array of bytes that shares its memory."""
    return np.frombuffer(buffer, np.uint8)


def element_count(buffer: memoryview, dtype: DType) -> int:
    """How many elements of ``dtype`` the buffer holds.

    Raises:
        PayloadMismatch: it does not hold a whole number of them.
    """
    count, rest = divmod(buffer.nbytes, dtype.itemsize)
    if rest:
        raise PayloadMismatch(f"{buffer.nbytes} bytes are not a whole number of {dtype} elements")
    return count


def widen(values: Bytes, dtype: DType) -> npt.NDArray[np.float32]:
    """At most ``PIECE`` elements of ``dtype`` as float32: the same memory if they are that, else a scratch.

    A float64 beyond the range of float32 becomes Inf.
    """
    typed = values.view(_numpy(dtype))
    if dtype.name == "float32":
        return typed.view(np.float32)
    wide = scratch("wide", typed.size, np.float32)
    if dtype.name == "bfloat16":
        bits = wide.view(np.uint32)
        np.copyto(bits, typed)
        np.left_shift(bits, 16, out=bits)
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(wide, typed, casting="unsafe")
    return wide


def narrow(values: npt.NDArray[np.float32], dtype: DType, out: Bytes) -> None:
    """Round at most ``PIECE`` values to ``dtype``, to nearest with ties to even, into the bytes ``out``."""
    typed = out.view(_numpy(dtype))
    if dtype.name == "bfloat16":
        np.copyto(typed, to_bfloat16(values), casting="unsafe")
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(typed, values, casting="unsafe")


def to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """The bfloat16 bits nearest to each value (ties to even), in the lower halves of a scratch."""
    bits = values.view(np.uint32)
    rounded = scratch("bfloat16", values.size, np.uint32)
    np.right_shift(bits, 16, out=rounded)
    np.bitwise_and(rounded, 1, out=rounded)
    np.add(rounded, 0x7FFF, out=rounded)
    np.add(rounded, bits, out=rounded)
    np.right_shift(rounded, 16, out=rounded)
    if values.size and np.isnan(np.max(values)):
        # Rounding a NaN up may carry into the sign; numpy and torch give a quiet NaN.
        rounded[np.isnan(values)] = 0x7FC0
    return rounded


def add_weighted(values: FloatArray, accumulator: Accumulator, weight: float) -> None:
    """``accumulator += weight * values`` for at most ``PIECE`` values, computed in the accumulator's dtype.

    Raises:
        NonFiniteValues: a value is NaN or Inf.
    """
    require_finite(values)
    product: FloatArray
    if accumulator.dtype == np.float64:
        product = scratch("product64", values.size, np.float64)
        np.multiply(values, np.float64(weight), out=product)
    else:
        product = scratch("product32", values.size, np.float32)
        np.multiply(values, np.float32(weight), out=product, casting="same_kind")
    np.add(accumulator, product, out=accumulator)


def require_finite(values: FloatArray) -> None:
    """Refuse NaN and Inf.

    Raises:
        NonFiniteValues: there is one.
    """
    # A sum shows them in one pass; finite values whose sum overflows are told apart by a second look.
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(np.add.reduce(values))
    if not math.isfinite(total) and not np.isfinite(values).all():
        raise NonFiniteValues(f"{int((~np.isfinite(values)).sum())} of {values.size} values are NaN or Inf")


def _numpy(dtype: DType) -> type[np.generic]:
    try:
        return _NUMPY[dtype.name]
    except KeyError:
        raise UnsupportedDtype(f"{dtype} is no floating-point type that can be widened to float32") from None
