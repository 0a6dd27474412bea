"""``rotate``: a randomised Hadamard rotation, which makes any values normally distributed.

``lloyd`` and ``nf4`` are best for normal values; the tails of a delta are heavy. A rotation spreads each
value over its whole block and keeps the sum of squares, so the error of what is quantised is the error of
what comes back. The signs depend on nothing but the position in the block and the seed: rotations of the
same tensor add up, and a sum of rotated updates is the rotated sum.

A block x of n values becomes H · (s · x / sqrt(n)): s are signs, and H, the Hadamard matrix in its natural
order, is applied by butterflies (a, b) -> (a + b, a - b) between values whose distance is 1, then 2, 4, ...,
n / 2, in float32. It comes back as s / sqrt(n) · (H · y). The tail of a tensor is cut into blocks of the
binary digits of its length, the largest first, so that nothing is padded.

Sign i is negative if the highest bit is set of output i of the generator splitmix64 (Steele, Lea, Flood 2014)
that begins at the seed.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from tensorbus.codecs.base import Accumulator, Encoded, SliceCodec, Stage
from tensorbus.codecs.context import CodecContext
from tensorbus.codecs.dtypes import DTYPES, DType
from tensorbus.codecs.floats import QUANTISABLE, add_weighted, as_bytes, element_count, narrow, widen
from tensorbus.codecs.item import ItemSpec
from tensorbus.codecs.kernels import declaring, native, pointer
from tensorbus.codecs.kernels.numbers import DTYPE_NUMBERS, sum_number
from tensorbus.codecs.scratch import pieces, scratch
from tensorbus.codecs.staged import StagedCodec
from tensorbus.codecs.working import handed_over, overwritable, working
from tensorbus.errors import InvalidSpecification, NonFiniteValues

Floats = npt.NDArray[np.float32]

FLOAT32 = DTYPES["float32"]
BLOCKSIZES = (64, 128, 256, 512, 1024, 2048, 4096)

NEAR = 64
"""Distances less than this are combined in the transpose."""

LARGEST = {"float16": 65504.0, "bfloat16": (2 - 2**-7) * 2.0**127}
"""What finite values come back as at most, where errors of quantising would carry them out of their dtype."""


class Rotate(Stage):
    """Rotates blocks of ``blocksize`` values of the flat tensor; the values behind it are float32.

    Not exact, even before ``none``: a rotation and its inverse round to float32 at each step.
    """

    name = "rotate"
    primary = "blocksize"

    def __init__(self, blocksize: int = 1024, seed: int = 1) -> None:
        if type(blocksize) is not int or blocksize not in BLOCKSIZES:
            allowed = ", ".join(map(str, BLOCKSIZES))
            raise InvalidSpecification(f"rotate has block sizes {allowed}, not {blocksize!r:.80}")
        if type(seed) is not int or not 0 <= seed < 2**63:
            raise InvalidSpecification(
                f"the seed of rotate is an integer from 0 to 2^63 - 1, not {seed!r:.80}"
            )
        self.blocksize = blocksize
        self.seed = seed
        self.factors = _factors(blocksize, seed)

    def config(self) -> dict[str, object]:
        return {"name": self.name, "blocksize": self.blocksize, "seed": self.seed}

    def accepts(self, dtype: DType) -> bool:
        return dtype.name in QUANTISABLE

    def inner_dtype(self, dtype: DType) -> DType:
        return FLOAT32

    def wrap(self, inner: SliceCodec, spec: ItemSpec, context: CodecContext) -> SliceCodec:
        return RotatedCodec(self, inner, spec.dtype)


class RotatedCodec(StagedCodec):
    """A rotation before another SliceCodec; slices are cut at multiples of both block sizes."""

    def __init__(self, rotation: Rotate, inner: SliceCodec, dtype: DType) -> None:
        super().__init__(rotation, inner, dtype)
        self.rotation = rotation
        self.blocksize = math.lcm(rotation.blocksize, inner.blocksize)
        self.grain = math.lcm(rotation.blocksize, inner.grain)  # 0 stays 0

    def encode(self, source: memoryview, offset: int, out: memoryview) -> Encoded:
        count = element_count(source, self.dtype)
        if library := native():
            ours = handed_over(source, self.dtype)
            rotated = working("rotated", count) if ours is None else ours
            _prototyped(library).tb_hadamard_encode(
                DTYPE_NUMBERS[self.dtype.name],
                pointer(source),
                count,
                self.rotation.blocksize,
                pointer(self.rotation.factors),
                pointer(rotated),
            )
        else:
            rotated = overwritable(source, self.dtype, "rotated")
            for start, stop in pieces(count):
                for rows, factors in self._blocks(rotated[start:stop]):
                    with np.errstate(over="ignore", invalid="ignore"):
                        np.multiply(rows, factors, out=rows)
                        _butterflies(rows)
        return self.inner.encode(_bytes(rotated), offset, out)

    def decode(self, payload: memoryview, offset: int, out: memoryview) -> None:
        count = element_count(out, self.dtype)
        in_place = self.dtype.name == "float32"
        rotated = as_bytes(out).view(np.float32) if in_place else working("rotated", count)
        self.inner.decode(payload, offset, _bytes(rotated))
        if library := native():
            _prototyped(library).tb_hadamard_decode(
                DTYPE_NUMBERS[self.dtype.name],
                pointer(rotated),
                count,
                self.rotation.blocksize,
                pointer(self.rotation.factors),
                pointer(out),
            )
            return
        target, size = as_bytes(out), self.dtype.itemsize
        for start, stop in pieces(count):
            narrow(self._turned_back(rotated[start:stop]), self.dtype, target[start * size : stop * size])

    def accumulate(self, payload: memoryview, offset: int, accumulator: Accumulator, weight: float) -> None:
        count = accumulator.size
        rotated = working("rotated", count)
        self.inner.decode(payload, offset, _bytes(rotated))
        if library := native():
            result = _prototyped(library).tb_hadamard_accumulate(
                DTYPE_NUMBERS[self.dtype.name],
                pointer(rotated),
                count,
                self.rotation.blocksize,
                pointer(self.rotation.factors),
                sum_number(accumulator),
                pointer(accumulator),
                weight,
            )
            if result < 0:
                raise NonFiniteValues("the payload holds NaN or Inf")
            return
        for start, stop in pieces(count):
            values = self._turned_back(rotated[start:stop])
            if self.dtype.itemsize == 2:
                rounded = scratch("rounded", values.size, np.uint16).view(np.uint8)
                narrow(values, self.dtype, rounded)
                values = widen(rounded, self.dtype)
            add_weighted(values, accumulator[start:stop], weight)

    # --- the same in numpy -------------------------------------------------------------------------------

    def _blocks(self, values: Floats) -> Iterator[tuple[Floats, Floats]]:
        """The whole blocks as rows, then each block of the tail as a row; and the factors of either."""
        factors, size, first = self.rotation.factors, self.rotation.blocksize, 0
        while first < values.size:
            rows = (values.size - first) // size
            if rows:
                yield values[first : first + rows * size].reshape(rows, size), factors[size : 2 * size]
            first += rows * size
            size //= 2

    def _turned_back(self, values: Floats) -> Floats:
        """At most ``PIECE`` rotated values turned back in place, within the range of the dtype."""
        with np.errstate(over="ignore", invalid="ignore"):
            for rows, factors in self._blocks(values):
                _butterflies(rows)
                np.multiply(rows, factors, out=rows)
        if (largest := LARGEST.get(self.dtype.name)) is not None:
            np.copyto(values, np.clip(values, -largest, largest), where=np.isfinite(values))
        return values


def _butterflies(rows: Floats) -> None:
    """H applied to each row, in place."""
    count = rows.shape[1]
    near = min(count, NEAR)
    # Neighbours in a row are far from one another in its transpose, where numpy combines them faster.
    columns = scratch("columns", rows.size, np.float32).reshape(near, -1)
    np.copyto(columns, rows.reshape(-1, near).T)
    distance = 1
    while distance < near:
        _combine(columns, distance * columns.shape[1])
        distance *= 2
    np.copyto(rows.reshape(-1, near), columns.T)
    while distance < count:
        _combine(rows, distance)
        distance *= 2


def _combine(values: Floats, distance: int) -> None:
    """(a, b) -> (a + b, a - b) for all pairs at this distance."""
    pairs = values.reshape(-1, 2, distance)
    lower, upper = pairs[:, 0], pairs[:, 1]
    sums = scratch("sums", values.size // 2, np.float32).reshape(lower.shape)
    np.add(lower, upper, out=sums)
    np.subtract(lower, upper, out=upper)
    np.copyto(lower, sums)


def _factors(blocksize: int, seed: int) -> Floats:
    """signs / sqrt(m) for blocks of m values, at m to 2 · m, for each power of two up to ``blocksize``."""
    factors = np.zeros(2 * blocksize, np.float32)
    signs = np.where(_splitmix64(seed, blocksize) >> np.uint64(63), np.float32(-1), np.float32(1))
    size = 1
    while size <= blocksize:
        factors[size : 2 * size] = signs[:size] * np.float32(1 / math.sqrt(size))
        size *= 2
    return factors


def _splitmix64(seed: int, count: int) -> npt.NDArray[np.uint64]:
    """The first ``count`` outputs of the generator."""
    step = np.arange(1, count + 1, dtype=np.uint64)
    state = np.uint64(seed) + step * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _bytes(values: Floats) -> memoryview:
    return values.view(np.uint8).data


@lru_cache(maxsize=1)
def _prototyped(library: ctypes.CDLL) -> ctypes.CDLL:
    number, long, address = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
    blocks = [long, long, address]
    with declaring:
        for function, arguments in (
            (library.tb_hadamard_encode, [number, address, *blocks, address]),
            (library.tb_hadamard_decode, [number, address, *blocks, address]),
            (library.tb_hadamard_accumulate, [number, address, *blocks, number, address, ctypes.c_double]),
        ):
            function.argtypes, function.restype = arguments, long
    return library
