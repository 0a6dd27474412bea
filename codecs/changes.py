"""Changes of values from a base: the difference, and the sum that undoes it.

The compiled kernels do the work where there are any, else numpy, piece by piece; both give the same bits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tensorbus.codecs.dtypes import DType
from tensorbus.codecs.floats import Bytes, narrow, widen
from tensorbus.codecs.kernels import native
from tensorbus.codecs.kernels.changes import native_changes
from tensorbus.codecs.scratch import pieces, scratch
from tensorbus.errors import NonFiniteValues

Floats = npt.NDArray[np.float32]


def subtract(values: Bytes, base: Bytes, dtype: DType, out: Floats) -> None:
    """``out = values - base`` as float32, computed in float64 for float64; 0 where the bits are the same.

    Raises:
        NonFiniteValues: a difference is NaN or Inf; ``out`` is then undefined.
    """
    library, size = native(), dtype.itemsize
    if library is not None:
        finite = native_changes(library).subtract(values, base, dtype, out)
    else:
        finite = all(
            _subtract(
                values[start * size : stop * size], base[start * size : stop * size], dtype, out[start:stop]
            )
            for start, stop in pieces(out.size)
        )
    if not finite:
        raise NonFiniteValues("the difference from the base holds NaN or Inf")


def add(base: Bytes, change: Floats, dtype: DType, out: Bytes) -> None:
    """``out = base + change`` in float32, or float64 for float64, rounded to ``dtype``.

    ``change`` is overwritten; for float32 it is the memory of ``out``.
    """
    library, size = native(), dtype.itemsize
    if library is not None:
        native_changes(library).add(base, change, dtype, out)
        return
    for start, stop in pieces(change.size):
        _add(base[start * size : stop * size], change[start:stop], dtype, out[start * size : stop * size])


def _subtract(values: Bytes, base: Bytes, dtype: DType, out: Floats) -> bool:
    """At most a piece; False if a difference is NaN or Inf."""
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype.name == "float64":
            exact = scratch("change", out.size, np.float64)
            np.subtract(values.view(np.float64), base.view(np.float64), out=exact)
            np.copyto(out, exact, casting="same_kind")
        else:
            np.copyto(out, widen(values, dtype))
            np.subtract(out, widen(base, dtype), out=out)
    # Both carry NaN along.
    if np.isfinite(np.max(out)) and np.isfinite(np.min(out)):
        return True
    # Infinities and NaNs that are the base's own, as in attention masks, are no change.
    bits = np.dtype(f"u{dtype.itemsize}")
    out[values.view(bits) == base.view(bits)] = 0
    return bool(np.isfinite(out).all())


def _add(base: Bytes, change: Floats, dtype: DType, out: Bytes) -> None:
    """At most a piece."""
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype.name == "float64":
            np.add(base.view(np.float64), change, out=out.view(np.float64))
            return
        np.add(widen(base, dtype), change, out=change)
    if dtype.name != "float32":
        narrow(change, dtype, out)
