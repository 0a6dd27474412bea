"""The compiled kernels of values as they are: converted, rounded to a 16-bit float, added up, checked."""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_int, c_int64, c_void_p
from functools import cache

import numpy as np
import numpy.typing as npt

from tensorbus.codecs.base import Accumulator
from tensorbus.codecs.dtypes import DType
from tensorbus.errors import NonFiniteValues

from .loader import pointer
from .numbers import DTYPE_NUMBERS, NON_FINITE, sum_number

Bytes = npt.NDArray[np.uint8]


class NativeValues:
    """See convert.c and halves.c; arrays are flat and contiguous, at any address."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._convert, self._round = library["tb_convert"], library["tb_half_encode"]
        self._accumulate, self._finite = library["tb_accumulate"], library["tb_sums_finite"]
        self._convert.argtypes = [c_int, c_void_p, c_int, c_void_p, c_int64]
        self._round.argtypes = [c_int, c_int, c_void_p, c_int64, c_void_p]
        self._accumulate.argtypes = [c_int, c_void_p, c_int64, c_int, c_void_p, c_double]
        self._finite.argtypes = [c_int, c_void_p, c_int64]
        for function in (self._convert, self._round, self._accumulate, self._finite):
            function.restype = c_int64

    def convert(self, values: Bytes, dtype: DType, out: Bytes, to: DType) -> None:
        """Write the values as another dtype, rounded to nearest by way of float32."""
        count = out.size // to.itemsize
        self._convert(DTYPE_NUMBERS[dtype.name], pointer(values), DTYPE_NUMBERS[to.name], pointer(out), count)

    def round(self, values: Bytes, dtype: DType, out: Bytes, half: DType) -> int:
        """Write float32 or float64 as 16-bit floats, clipped to the largest finite one; how many were.

        Raises:
            NonFiniteValues: a value is NaN or Inf.
        """
        numbers = DTYPE_NUMBERS[half.name], DTYPE_NUMBERS[dtype.name]
        clipped: int = self._round(*numbers, pointer(values), values.size // dtype.itemsize, pointer(out))
        if clipped == NON_FINITE:
            raise NonFiniteValues("the values to be rounded hold NaN or Inf")
        return clipped

    def accumulate(self, values: Bytes, dtype: DType, accumulator: Accumulator, weight: float) -> None:
        """Add the weighted values. Raises NonFiniteValues."""
        number, sums = DTYPE_NUMBERS[dtype.name], sum_number(accumulator)
        status: int = self._accumulate(
            number, pointer(values), accumulator.size, sums, pointer(accumulator), weight
        )
        if status == NON_FINITE:
            raise NonFiniteValues("the payload holds NaN or Inf")

    def finite(self, sums: Accumulator) -> bool:
        """Whether none of the sums is NaN or Inf."""
        status: int = self._finite(sum_number(sums), pointer(sums), sums.size)
        return status != NON_FINITE


@cache
def native_values(library: ctypes.CDLL) -> NativeValues:
    """The kernels in this library."""
    return NativeValues(library)
