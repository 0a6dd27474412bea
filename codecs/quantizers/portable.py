"""Codes with an absmax for each block in numpy: the bytes of the compiled kernels, where there are none.

The arithmetic follows bitsandbytes 0.50 on CPUs to the bit: a whole block is multiplied by the reciprocal of
its absmax, a tail block is divided by it; an absmax below 1e-38 is taken for 1e-38, and stored so for a tail.
Work is done in cache-sized pieces: absmax of each block, values scaled into [-1, 1], codes of the scaled
values; and back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tensorbus.codecs.base import Accumulator
from tensorbus.codecs.dtypes import DType
from tensorbus.codecs.floats import add_weighted, narrow, widen
from tensorbus.codecs.scratch import pieces, scratch
from tensorbus.errors import NonFiniteValues

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

SMALLEST_ABSMAX = np.float32(1e-38)


class Code(Protocol):
    """The code of single values: which bits stand for a number in [-1, 1]."""

    def nbytes(self, count: int) -> int:
        """Bytes that the codes of ``count`` values take."""
        ...

    def encode(self, scaled: Floats, out: Bytes) -> None:
        """Write the codes of at most ``PIECE`` scaled values."""
        ...

    def decode(self, codes: Bytes, count: int) -> Floats:
        """The scaled values of at most ``PIECE`` codes, in a scratch."""
        ...


class PortableBlocks:
    """As ``NativeBlocks``, for any ``Code``."""

    def __init__(self, code: Code) -> None:
        self._code = code

    def encode(self, values: Bytes, dtype: DType, blocksize: int, codes: Bytes, absmax: Floats) -> None:
        """Write the codes of the values and the absmax of their blocks. Raises NonFiniteValues."""
        size, nbytes = dtype.itemsize, self._code.nbytes
        for start, stop in pieces(values.size // size):
            wide = widen(values[start * size : stop * size], dtype)
            blocks = slice(start // blocksize, _blocks(stop, blocksize))
            self._code.encode(_scaled(wide, blocksize, absmax[blocks]), codes[nbytes(start) : nbytes(stop)])

    def decode(self, codes: Bytes, absmax: Floats, dtype: DType, blocksize: int, out: Bytes) -> None:
        """Write the values, rounded to ``dtype``."""
        size = dtype.itemsize
        target = out.view(np.float32) if dtype.name == "float32" else None
        for start, stop, values in self._decoded(codes, absmax, out.size // size, blocksize, target):
            if target is None:
                narrow(values, dtype, out[start * size : stop * size])

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
        for start, stop, values in self._decoded(codes, absmax, accumulator.size, blocksize):
            if dtype.itemsize == 2:
                rounded = scratch("rounded", values.size, np.uint16).view(np.uint8)
                narrow(values, dtype, rounded)
                values = widen(rounded, dtype)
            add_weighted(values, accumulator[start:stop], weight)

    def _decoded(
        self, codes: Bytes, absmax: Floats, count: int, blocksize: int, target: Floats | None = None
    ) -> Iterator[tuple[int, int, Floats]]:
        """The decoded pieces (start, stop, values), written to ``target`` or, without it, to a scratch."""
        nbytes = self._code.nbytes
        for start, stop in pieces(count):
            levels = self._code.decode(codes[nbytes(start) : nbytes(stop)], stop - start)
            out = levels if target is None else target[start:stop]
            whole, full, first = (
                levels.size // blocksize,
                levels.size // blocksize * blocksize,
                start // blocksize,
            )
            rows = (whole, blocksize)
            with np.errstate(over="ignore", invalid="ignore"):
                factors = absmax[first : first + whole, None]
                np.multiply(levels[:full].reshape(rows), factors, out=out[:full].reshape(rows))
                if full < levels.size:
                    np.multiply(levels[full:], absmax[first + whole], out=out[full:])
            yield start, stop, out


def _scaled(values: Floats, blocksize: int, absmax: Floats) -> Floats:
    """The values of whole blocks and perhaps a tail, scaled into [-1, 1]; writes the absmax of each block."""
    scaled = scratch("scaled", values.size, np.float32)
    np.abs(values, out=scaled)
    # Of numpy's ways to a maximum over short rows, reduceat is twice as fast as the next.
    np.maximum.reduceat(scaled, np.arange(0, values.size, blocksize), out=absmax)
    if not np.isfinite(absmax).all():
        raise NonFiniteValues("the values to be quantised hold NaN or Inf (in float32)")
    whole = values.size // blocksize
    full = whole * blocksize
    floor = np.maximum(absmax, SMALLEST_ABSMAX)
    rows = (whole, blocksize)
    factors = np.divide(np.float32(1), floor[:whole])[:, None]
    np.multiply(values[:full].reshape(rows), factors, out=scaled[:full].reshape(rows))
    if full < values.size:
        absmax[whole] = floor[whole]
        np.divide(values[full:], floor[whole], out=scaled[full:])
    return scaled


def _blocks(count: int, blocksize: int) -> int:
    return -(-count // blocksize)
