"""The compiled kernels of changes: differences from a base, and sums with it."""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_int64, c_void_p
from functools import cache

import numpy as np
import numpy.typing as npt

from tensorbus.codecs.dtypes import DType

from .loader import pointer
from .numbers import DTYPE_NUMBERS, NON_FINITE

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


class NativeChanges:
    """See changes.c; arrays are flat and contiguous, values, base and sums at any address."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._subtract, self._add = library["tb_change_subtract"], library["tb_change_add"]
        self._subtract.argtypes = [c_int, c_void_p, c_void_p, c_int64, c_void_p]
        self._add.argtypes = [c_int, c_void_p, c_int64, c_void_p, c_void_p]
        self._subtract.restype = self._add.restype = c_int64

    def subtract(self, values: Bytes, base: Bytes, dtype: DType, out: Floats) -> bool:
        """Write ``values - base``; False if a difference is NaN or Inf."""
        status: int = self._subtract(
            DTYPE_NUMBERS[dtype.name], pointer(values), pointer(base), out.size, pointer(out)
        )
        return status != NON_FINITE

    def add(self, base: Bytes, change: Floats, dtype: DType, out: Bytes) -> None:
        """Write ``base + change``, rounded; ``change`` is overwritten."""
        self._add(DTYPE_NUMBERS[dtype.name], pointer(base), change.size, pointer(change), pointer(out))


@cache
def native_changes(library: ctypes.CDLL) -> NativeChanges:
    """The kernels in this library."""
    return NativeChanges(library)
