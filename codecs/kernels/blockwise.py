"""The compiled kernels of codes with an absmax for each block, and of quantised absmax."""

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

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


class NativeBlocks:
    """The functions of one code, as ``tb_<name>_*`` in the library; see blockwise.h."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self._encode, self._decode, self._accumulate = (
            library[f"tb_{name}_{function}"] for function in ("encode", "decode", "accumulate")
        )
        payload = [c_void_p, c_void_p, c_int64, c_int64]
        self._encode.argtypes = [c_int, c_void_p, c_int64, c_int64, c_void_p, c_void_p]
        self._decode.argtypes = [c_int, *payload, c_void_p]
        self._accumulate.argtypes = [c_int, *payload, c_int, c_void_p, c_double]
        for function in (self._encode, self._decode, self._accumulate):
            function.restype = c_int64

    def encode(self, values: Bytes, dtype: DType, blocksize: int, codes: Bytes, absmax: Floats) -> None:
        """Write the codes of the values and the absmax of their blocks. Raises NonFiniteValues."""
        status: int = self._encode(
            DTYPE_NUMBERS[dtype.name],
            pointer(values),
            values.size // dtype.itemsize,
            blocksize,
            pointer(codes),
            pointer(absmax),
        )
        if status == NON_FINITE:
            raise NonFiniteValues("the values to be quantised hold NaN or Inf (in float32)")

    def decode(self, codes: Bytes, absmax: Floats, dtype: DType, blocksize: int, out: Bytes) -> None:
        """Write the values, rounded to ``dtype``."""
        count = out.size // dtype.itemsize
        number = DTYPE_NUMBERS[dtype.name]
        self._decode(number, pointer(codes), pointer(absmax), count, blocksize, pointer(out))

    def accumulate(
        self,
        codes: Bytes,
        absmax: Floats,
        dtype: DType,
        blocksize: int,
        accumulator: Accumulator,
        weight: float,
    ) -> None:
        """Add the weighted values, rounded to ``dtype`` before. Raises NonFiniteValues."""
        status: int = self._accumulate(
            DTYPE_NUMBERS[dtype.name],
            pointer(codes),
            pointer(absmax),
            accumulator.size,
            blocksize,
            sum_number(accumulator),
            pointer(accumulator),
            weight,
        )
        if status == NON_FINITE:
            raise NonFiniteValues("the payload decodes to NaN or Inf")


class NativeAbsmax:
    """The functions of quantised absmax; see doublequant.c."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._encode, self._decode = library["tb_absmax_encode"], library["tb_absmax_decode"]
        self._encode.argtypes = [c_void_p, c_int64, c_void_p, c_void_p, c_void_p]
        self._decode.argtypes = [c_void_p, c_void_p, c_void_p, c_int64, c_void_p]
        for function in (self._encode, self._decode):
            function.restype = c_int64

    def encode(self, absmax: Floats, means: Floats, scales: Floats, codes: Bytes) -> None:
        """Write mean and scale of each group, and the code of each block."""
        self._encode(pointer(absmax), absmax.size, pointer(means), pointer(scales), pointer(codes))

    def decode(self, means: Floats, scales: Floats, codes: Bytes, absmax: Floats) -> None:
        """Write the absmax of each block."""
        self._decode(pointer(means), pointer(scales), pointer(codes), absmax.size, pointer(absmax))


@cache
def native_blocks(library: ctypes.CDLL, name: str) -> NativeBlocks:
    """The kernels of the code called ``name`` in the C sources."""
    return NativeBlocks(library, name)


@cache
def native_absmax(library: ctypes.CDLL) -> NativeAbsmax:
    """The kernels of quantised absmax."""
    return NativeAbsmax(library)
