"""The numbers by which kernels.h calls dtypes, sums and failures."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

DTYPE_NUMBERS: dict[str, int] = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 3}
"""By the name of the dtype."""

NON_FINITE = -1
"""Returned where a value is NaN or Inf."""

MALFORMED = -2
"""Returned where a payload cannot be what it should be."""


def sum_number(accumulator: npt.NDArray[np.float32] | npt.NDArray[np.float64]) -> int:
    """Of the precision of an accumulator."""
    return 1 if accumulator.dtype == np.float64 else 0
