"""Exact sums: numbers whose sum is the same bits in whatever order they are added, and in whatever groups.

A sum is a 128-bit integer that counts steps of 2^-64, so it reaches to ±2^63. A product of a weight and a
value is rounded to float64, as always, and then to a whole number of steps, to nearest, ties to even; from
there on all is exact. In memory a sum is two int64, the lower 64 bits first: together one little-endian
integer in two's complement. (The idea is that of Kulisch's accumulator; this one is shorter.)

The compiled kernels do the work where there are any, else numpy; both give the same bits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tensorbus.codecs.dtypes import DType
from tensorbus.codecs.floats import Bytes, widen
from tensorbus.codecs.kernels import native
from tensorbus.codecs.kernels.exact import native_exact
from tensorbus.codecs.kernels.numbers import MALFORMED, NON_FINITE
from tensorbus.codecs.scratch import pieces
from tensorbus.errors import NonFiniteValues

Sums = npt.NDArray[np.int64]
"""Flat and contiguous, two for each number."""

BYTES = 16
"""Of a sum."""

LARGEST_PRODUCT = 2.0**62
"""The size of a weighted value is below it."""

_LIMITS = "a weighted value beyond ±2^62, or a sum beyond ±2^63"


def add_products(values: Bytes, dtype: DType, sums: Sums, weight: float) -> None:
    """``sums += weight * values``, for values of one of the ``QUANTISABLE`` dtypes.

    Raises:
        NonFiniteValues: a value is NaN or Inf, or something leaves the range; the sums are then undefined.
    """
    library = native()
    if library is not None:
        _check(native_exact(library).add(values, dtype, sums, weight))
        return
    for start, stop in pieces(sums.size // 2):
        piece = values[start * dtype.itemsize : stop * dtype.itemsize]
        wide = np.frombuffer(piece, np.float64) if dtype.name == "float64" else widen(piece, dtype)
        if not np.isfinite(wide).all():
            _check(NON_FINITE)
        _add(_on_grid(wide.astype(np.float64) * weight), sums[2 * start : 2 * stop])


def add_sums(others: Bytes, sums: Sums) -> None:
    """``sums += others``, which are sums as well, at any address.

    Raises:
        NonFiniteValues: a sum leaves the range; the sums are then undefined.
    """
    library = native()
    if library is not None:
        _check(native_exact(library).merge(others, sums))
        return
    for start, stop in pieces(sums.size // 2):
        rows = np.frombuffer(others[start * BYTES : stop * BYTES].tobytes(), np.int64)
        _add((rows[1::2], rows[::2].view(np.uint64)), sums[2 * start : 2 * stop])


def divide(sums: Sums, total: float, out: npt.NDArray[np.float64]) -> None:
    """Write each sum divided by ``total``, correctly rounded: to the nearest float64, ties to even.

    Args:
        total: positive, and between 2^-400 and 2^400.
    """
    library = native()
    if library is not None:
        native_exact(library).divide(sums, total, out)
        return
    numerator, denominator = total.as_integer_ratio()
    below = numerator << 64
    for at, (low, high) in enumerate(sums.reshape(-1, 2).tolist()):
        # The true division of two int is correctly rounded.
        out[at] = (high << 64 | low & 0xFFFF_FFFF_FFFF_FFFF) * denominator / below


def _check(status: int) -> None:
    if status == NON_FINITE:
        raise NonFiniteValues("the payload holds NaN or Inf")
    if status == MALFORMED:
        raise NonFiniteValues(f"an exact sum leaves its range: {_LIMITS}")


Wide = tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]
"""The upper and the lower words of 128-bit integers."""


def _on_grid(products: npt.NDArray[np.float64]) -> Wide:
    """Products in steps of 2^-64: k·2^63 + t, see exact.c."""
    if products.size and not np.abs(products).max() < LARGEST_PRODUCT:
        _check(MALFORMED)
    halves = np.rint(products + products)
    rests = np.rint((products - 0.5 * halves) * 2.0**64).astype(np.int64)
    whole = halves.astype(np.int64)
    lower = whole.view(np.uint64) << np.uint64(63)
    low = lower + rests.view(np.uint64)
    return (whole >> 1) + (rests >> 63) + (low < lower), low


def _add(numbers: Wide, sums: Sums) -> None:
    high, low = numbers
    upper, lower = sums[1::2], sums[::2].view(np.uint64)
    total = lower + low
    above = upper + high + (total < low)
    if (((upper ^ above) & (high ^ above)) < 0).any():
        _check(MALFORMED)
    lower[:] = total
    upper[:] = above
