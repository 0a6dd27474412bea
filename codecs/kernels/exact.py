"""The compiled kernels of exact sums: 128-bit integers that count steps of 2^-64."""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_int, c_int64, c_void_p
from functools import cache

import numpy as np
import numpy.typing as npt

from tensorbus.codecs.dtypes import DType

from .loader import pointer
from .numbers import DTYPE_NUMBERS

Bytes = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.int64]


class NativeExact:
    """See exact.c; arrays are flat and contiguous, values and payloads at any address."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._add, self._merge = library["tb_exact_add"], library["tb_exact_merge"]
        self._divide = library["tb_exact_divide"]
        self._add.argtypes = [c_int, c_void_p, c_int64, c_void_p, c_double]
        self._merge.argtypes = [c_void_p, c_int64, c_void_p]
        self._divide.argtypes = [c_void_p, c_int64, c_double, c_void_p]
        self._add.restype = self._merge.restype = self._divide.restype = c_int64

    def add(self, values: Bytes, dtype: DType, sums: Rows, weight: float) -> int:
        """Add the weighted values; 0, or NON_FINITE, or MALFORMED if something leaves the range."""
        count = sums.size // 2
        status: int = self._add(DTYPE_NUMBERS[dtype.name], pointer(values), count, pointer(sums), weight)
        return status

    def merge(self, others: Bytes, sums: Rows) -> int:
        """Add other sums; 0, or MALFORMED if one leaves the range."""
        status: int = self._merge(pointer(others), sums.size // 2, pointer(sums))
        return status

    def divide(self, sums: Rows, total: float, out: npt.NDArray[np.float64]) -> None:
        """Write the sums divided by ``total``."""
        self._divide(pointer(sums), out.size, total, pointer(out))


@cache
def native_exact(library: ctypes.CDLL) -> NativeExact:
    """The kernels in this library."""
    return NativeExact(library)
