"""``lloyd``: the best 1 to 4 bits for normally distributed values, as values are after a rotation.

    payload = for each block of values: their root mean square (float32), then a plane of bits for each bit of
              the codes, the lowest first: bit i % 8 of byte i // 8 is that of value i, and a block of n
              values has planes of ceil(n / 8) bytes, padded with zeros

The highest bit of a code is the sign of the value, the others are its rank: how many thresholds, each times
the root mean square, its magnitude exceeds. It decodes to the level of that rank, times the root mean square.

Thresholds and levels are those of Lloyd and Max: each level is the mean of the values that get it, so the
mean square error is the smallest possible for a normal distribution, and what comes back is the expected
value of what was there, a little smaller on the average than the original; ``feedback`` makes up for that
over the rounds. No level is zero: tensors of many exact zeros want ``rotate`` first, or another codec.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from tensorbus.codecs.base import Accumulator, Encoded, Quantizer
from tensorbus.codecs.dtypes import DType
from tensorbus.codecs.floats import QUANTISABLE, add_weighted, as_bytes, element_count, narrow, widen
from tensorbus.codecs.kernels import declaring, native, pointer
from tensorbus.codecs.kernels.numbers import DTYPE_NUMBERS, sum_number
from tensorbus.codecs.rms import rms
from tensorbus.codecs.scratch import pieces, scratch
from tensorbus.errors import InvalidSpecification, NonFiniteValues, PayloadMismatch

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

BLOCKSIZES = (64, 128, 256, 512, 1024, 2048, 4096)

LEVELS: dict[int, tuple[float, ...]] = {
    1: (0.7978845608028654,),
    2: (0.4527800346364921, 1.510417608499096),
    3: (0.24509417894422184, 0.7560052812058781, 1.3439092785050006, 2.1519457045369874),
    4: (
        0.1283950298511473,
        0.38804829949029174,
        0.6567591185324646,
        0.9423404564869629,
        1.2562311973471783,
        1.6180463860218823,
        2.069017226531386,
        2.732589570995161,
    ),
}
"""Magnitudes for N(0, 1), by bits (Max, Quantizing for Minimum Distortion, 1960; Lloyd, Least Squares
Quantization in PCM, 1982); used as the nearest float32. A threshold is the mean of its two neighbours."""

LARGEST = {
    "float16": np.float32(65504),
    "bfloat16": np.float32((2 - 2**-7) * 2.0**127),
    "float32": np.finfo(np.float32).max,
    "float64": np.finfo(np.float32).max,
}
"""What finite values decode to at most, so that they are finite in their own dtype."""


class Lloyd(Quantizer):
    """``bits`` bits a value and 4 bytes a block.

    The relative mean square error of normal values: 0.363 at 1.03 bits, 0.117 at 2.03, 0.0345 at 3.03, 0.0095
    at 4.03.
    """

    name = "lloyd"
    primary = "bits"

    def __init__(self, bits: int = 2, blocksize: int = 1024) -> None:
        if type(bits) is not int or bits not in LEVELS:
            raise InvalidSpecification(f"lloyd has 1, 2, 3 or 4 bits, not {bits!r:.80}")
        if type(blocksize) is not int or blocksize not in BLOCKSIZES:
            allowed = ", ".join(map(str, BLOCKSIZES))
            raise InvalidSpecification(f"lloyd has block sizes {allowed}, not {blocksize!r:.80}")
        self.bits = bits
        self.blocksize = self.grain = blocksize
        levels = np.array(LEVELS[bits])
        self._levels = levels.astype(np.float32)
        self._thresholds = np.append(0, (levels[:-1] + levels[1:]) / 2).astype(np.float32)

    def config(self) -> dict[str, object]:
        return {"name": self.name, "bits": self.bits, "blocksize": self.blocksize}

    def accepts(self, dtype: DType) -> bool:
        return dtype.name in QUANTISABLE

    def encoded_size(self, count: int, dtype: DType) -> int:
        blocks, tail = divmod(count, self.blocksize)
        return blocks * self._block_bytes(self.blocksize) + (self._block_bytes(tail) if tail else 0)

    def encode(self, source: memoryview, dtype: DType, out: memoryview) -> Encoded:
        count = element_count(source, dtype)
        nbytes = self.encoded_size(count, dtype)
        if library := native():
            result = _prototyped(library).tb_lloyd_encode(
                DTYPE_NUMBERS[dtype.name],
                self.bits,
                pointer(self._thresholds),
                pointer(source),
                count,
                self.blocksize,
                pointer(out[:nbytes]),
            )
            if result < 0:
                raise _non_finite()
            return Encoded(nbytes)
        original, payload = as_bytes(source), as_bytes(out)
        for start, stop in pieces(count):
            values = widen(original[start * dtype.itemsize : stop * dtype.itemsize], dtype)
            scales = rms(values, self.blocksize)
            if not np.isfinite(scales).all():
                raise _non_finite()
            for rows, blocks, part in self._parts(values.size):
                at = self.encoded_size(start + rows.start, dtype)
                written = payload[at : at + part * self._block_bytes(values[rows].size // part)]
                self._encode_rows(values[rows].reshape(part, -1), scales[blocks, None], written)
        return Encoded(nbytes)

    def decode(self, payload: memoryview, dtype: DType, out: memoryview) -> None:
        target, count = as_bytes(out), element_count(out, dtype)
        self._check(payload, count, dtype)
        if library := native():
            _prototyped(library).tb_lloyd_decode(
                DTYPE_NUMBERS[dtype.name],
                self.bits,
                pointer(self._levels),
                pointer(payload),
                count,
                self.blocksize,
                pointer(out),
            )
            return
        for start, stop, values in self._decoded(payload, count, dtype):
            narrow(values, dtype, target[start * dtype.itemsize : stop * dtype.itemsize])

    def accumulate(self, payload: memoryview, dtype: DType, accumulator: Accumulator, weight: float) -> None:
        self._check(payload, accumulator.size, dtype)
        if library := native():
            result = _prototyped(library).tb_lloyd_accumulate(
                DTYPE_NUMBERS[dtype.name],
                self.bits,
                pointer(self._levels),
                pointer(payload),
                accumulator.size,
                self.blocksize,
                sum_number(accumulator),
                pointer(accumulator),
                weight,
            )
            if result < 0:
                raise NonFiniteValues("the payload holds NaN or Inf")
            return
        for start, stop, values in self._decoded(payload, accumulator.size, dtype):
            if dtype.itemsize == 2:
                rounded = scratch("rounded", values.size, np.uint16).view(np.uint8)
                narrow(values, dtype, rounded)
                values = widen(rounded, dtype)
            add_weighted(values, accumulator[start:stop], weight)

    def cut(self, payload: memoryview, dtype: DType, count: int, start: int, stop: int) -> memoryview:
        self._check(payload, count, dtype)
        return payload[self.encoded_size(start, dtype) : self.encoded_size(stop, dtype)]

    def _block_bytes(self, count: int) -> int:
        return 4 + self.bits * ((count + 7) // 8)

    def _check(self, payload: memoryview, count: int, dtype: DType) -> None:
        expected = self.encoded_size(count, dtype)
        if payload.nbytes != expected:
            raise PayloadMismatch(
                f"lloyd payload of {payload.nbytes} bytes; {count} elements take {expected}"
            )

    # --- the same in numpy: whole blocks are the rows of a matrix, a tail is a row of its own -----------

    def _parts(self, count: int) -> Iterator[tuple[slice, slice, int]]:
        """For the whole blocks of a piece, then for its tail: elements, blocks, and how many blocks."""
        whole = count // self.blocksize
        if whole:
            yield slice(0, whole * self.blocksize), slice(0, whole), whole
        if count > whole * self.blocksize:
            yield slice(whole * self.blocksize, count), slice(whole, whole + 1), 1

    def _encode_rows(self, values: Floats, scales: Floats, out: Bytes) -> None:
        rows = out.reshape(len(values), -1)
        rows[:, :4] = scales.view(np.uint8)
        magnitudes = np.abs(values)
        planes = np.zeros((self.bits, *values.shape), np.bool_)
        with np.errstate(over="ignore"):
            for rank in range(1, self._thresholds.size):
                above = magnitudes > self._thresholds[rank] * scales
                for bit in range(self.bits - 1):
                    # Bit j of the rank changes at every threshold whose number is a multiple of 2^j.
                    if rank % 2**bit == 0:
                        planes[bit] ^= above
        planes[-1] = np.signbit(values)
        packed = np.packbits(planes, axis=2, bitorder="little")
        rows[:, 4:] = packed.transpose(1, 0, 2).reshape(len(values), -1)

    def _decoded(self, payload: memoryview, count: int, dtype: DType) -> Iterator[tuple[int, int, Floats]]:
        """The decoded pieces (start, stop, values), in a scratch."""
        stored = as_bytes(payload)
        for start, stop in pieces(count):
            values = scratch("values", stop - start, np.float32)
            for elements, _, part in self._parts(values.size):
                at = self.encoded_size(start + elements.start, dtype)
                size = values[elements].size // part
                rows = stored[at : at + part * self._block_bytes(size)].reshape(part, -1)
                values[elements] = self._decode_rows(rows, size, dtype).reshape(-1)
            yield start, stop, values

    def _decode_rows(self, rows: Bytes, size: int, dtype: DType) -> Floats:
        scales = np.ascontiguousarray(rows[:, :4]).view(np.float32)
        largest = LARGEST[dtype.name]
        with np.errstate(over="ignore", invalid="ignore"):
            levels = scales * self._levels
            finite = scales <= np.finfo(np.float32).max
            levels = np.where(finite & (levels > largest), largest, levels)
        planes = np.unpackbits(
            rows[:, 4:].reshape(len(rows), self.bits, -1), axis=2, count=size, bitorder="little"
        )
        codes = np.zeros((len(rows), size), np.intp)
        for bit in range(self.bits):
            codes |= planes[:, bit].astype(np.intp) << bit
        return np.take_along_axis(np.concatenate([levels, -levels], axis=1), codes, axis=1)


def _non_finite() -> NonFiniteValues:
    return NonFiniteValues("the values to be quantised hold NaN or Inf (in float32)")


@lru_cache(maxsize=1)
def _prototyped(library: ctypes.CDLL) -> ctypes.CDLL:
    number, long, address = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
    blocks = [number, number, address, address, long, long]
    with declaring:
        for function, arguments in (
            (library.tb_lloyd_encode, [*blocks, address]),
            (library.tb_lloyd_decode, [*blocks, address]),
            (library.tb_lloyd_accumulate, [*blocks, number, address, ctypes.c_double]),
        ):
            function.argtypes, function.restype = arguments, long
    return library
