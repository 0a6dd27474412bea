"""Whole slices of values as they are: converted to another dtype, added up, checked.

The compiled kernels do the work where there are any, else numpy, piece by piece; both give the same bits.
"""

from __future__ import annotations

import numpy as np

from tensorbus.codecs.base import Accumulator
from tensorbus.codecs.dtypes import DType
from tensorbus.codecs.floats import Bytes, add_weighted, narrow, widen
from tensorbus.codecs.kernels import native
from tensorbus.codecs.kernels.values import native_values
from tensorbus.codecs.scratch import pieces


def convert(values: Bytes, dtype: DType, out: Bytes, to: DType) -> None:
    """Write values of one of the ``QUANTISABLE`` dtypes as another, by way of float32.

    Rounded to nearest, ties to even; what is beyond the range of ``to`` becomes Inf.
    """
    library = native()
    if library is not None:
        native_values(library).convert(values, dtype, out, to)
        return
    for start, stop in pieces(out.size // to.itemsize):
        wide = widen(values[start * dtype.itemsize : stop * dtype.itemsize], dtype)
        narrow(wide, to, out[start * to.itemsize : stop * to.itemsize])


def accumulate(values: Bytes, dtype: DType, accumulator: Accumulator, weight: float) -> None:
    """``accumulator += weight * values`` for values of one of the ``QUANTISABLE`` dtypes.

    float64 is weighted as it is; the other dtypes in the accumulator's precision.

    Raises:
        NonFiniteValues: a value is NaN or Inf; the accumulator is then undefined.
    """
    library = native()
    if library is not None:
        native_values(library).accumulate(values, dtype, accumulator, weight)
        return
    for start, stop in pieces(accumulator.size):
        piece = values[start * dtype.itemsize : stop * dtype.itemsize]
        exact = piece.view(np.float64) if dtype.name == "float64" else widen(piece, dtype)
        add_weighted(exact, accumulator[start:stop], weight)


def all_finite(sums: Accumulator) -> bool:
    """Whether none of the sums is NaN or Inf; takes no memory."""
    library = native()
    if library is not None:
        return native_values(library).finite(sums)
    # min and max carry NaN and Inf along, and allocate nothing.
    return not sums.size or bool(np.isfinite(sums.min()) and np.isfinite(sums.max()))
