"""Blockwise quantisation: a few bits for each value, and one absmax for each block of them.

    payload = codes of all values, then the absmax of all blocks (one float32 each, or as the format says)

A slice is worked on in cache-sized pieces: absmax of each block, values scaled into [-1, 1], codes of the
scaled values; and back. What the codes are is up to a ``Code``, how absmax is written to an ``AbsmaxFormat``.

The arithmetic follows bitsandbytes 0.50 on CPUs to the bit: a whole block is multiplied by the reciprocal of
its absmax, a tail block is divided by it; an absmax below 1e-38 is taken for 1e-38, and stored so for a tail.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from tensorbus.codecs.base import Accumulator, Encoded, Quantizer
from tensorbus.codecs.dtypes import DType
from tensorbus.codecs.floats import QUANTISABLE, add_weighted, as_bytes, element_count, narrow, widen
from tensorbus.codecs.scratch import pieces, scratch
from tensorbus.errors import InvalidSpecification, NonFiniteValues, PayloadMismatch

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


class AbsmaxFormat(Protocol):
    """How the absmax of the blocks is written behind the codes."""

    def nbytes(self, blocks: int) -> int:
        """Bytes that the absmax of ``blocks`` blocks take."""
        ...

    def write(self, absmax: Floats, first: int, blocks: int, out: Bytes) -> None:
        """Write the absmax of the blocks from ``first`` on, out of ``blocks``, to their place in ``out``."""
        ...

    def read(self, first: int, last: int, blocks: int, stored: Bytes) -> Floats:
        """The absmax of the blocks ``first`` to ``last``, of ``blocks`` in all."""
        ...


class PlainAbsmax:
    """One float32 for each block."""

    def nbytes(self, blocks: int) -> int:
        return 4 * blocks

    def write(self, absmax: Floats, first: int, blocks: int, out: Bytes) -> None:
        np.copyto(out[4 * first : 4 * (first + absmax.size)].view(np.float32), absmax)

    def read(self, first: int, last: int, blocks: int, stored: Bytes) -> Floats:
        return stored[4 * first : 4 * last].view(np.float32)


class BlockwiseQuantizer(Quantizer):
    """What the quantizers with an absmax for each block have in common."""

    code: ClassVar[Code]
    absmax_format: ClassVar[AbsmaxFormat] = PlainAbsmax()
    blocksizes: ClassVar[tuple[int, ...]]
    """The block sizes that the codec allows."""

    def __init__(self, blocksize: int) -> None:
        if type(blocksize) is not int or blocksize not in self.blocksizes:
            allowed = ", ".join(map(str, self.blocksizes))
            raise InvalidSpecification(f"{self.name} has block sizes {allowed}, not {blocksize!r}")
        self.block = blocksize
        self.blocksize = blocksize

    def config(self) -> dict[str, object]:
        return {"name": self.name, "blocksize": self.block}

    def accepts(self, dtype: DType) -> bool:
        return dtype.name in QUANTISABLE

    def encoded_size(self, count: int, dtype: DType) -> int:
        return self.code.nbytes(count) + self.absmax_format.nbytes(self._blocks(count))

    def encode(self, source: memoryview, dtype: DType, out: memoryview) -> Encoded:
        count = element_count(source, dtype)
        nbytes = self.encoded_size(count, dtype)
        payload = as_bytes(out)[:nbytes]
        codes, stored = np.split(payload, [self.code.nbytes(count)])
        original = as_bytes(source)
        for start, stop in pieces(count):
            values = widen(original[start * dtype.itemsize : stop * dtype.itemsize], dtype)
            scaled, absmax = self._scaled(values)
            self.absmax_format.write(absmax, start // self.block, self._blocks(count), stored)
            self.code.encode(scaled, codes[self.code.nbytes(start) : self.code.nbytes(stop)])
        return Encoded(nbytes)

    def decode(self, payload: memoryview, dtype: DType, out: memoryview) -> None:
        target, count = as_bytes(out), element_count(out, dtype)
        if dtype.name == "float32":
            for _ in self._decoded(payload, count, dtype, target.view(np.float32)):
                pass
            return
        for start, stop, values in self._decoded(payload, count, dtype):
            narrow(values, dtype, target[start * dtype.itemsize : stop * dtype.itemsize])

    def accumulate(self, payload: memoryview, dtype: DType, accumulator: Accumulator, weight: float) -> None:
        for start, stop, values in self._decoded(payload, accumulator.size, dtype):
            if dtype.itemsize == 2:
                rounded = scratch("rounded", values.size, np.uint16).view(np.uint8)
                narrow(values, dtype, rounded)
                values = widen(rounded, dtype)
            add_weighted(values, accumulator[start:stop], weight)

    def _blocks(self, count: int) -> int:
        return -(-count // self.block)

    def _scaled(self, values: Floats) -> tuple[Floats, Floats]:
        """The values of whole blocks and perhaps a tail, scaled into [-1, 1], and the absmax of each."""
        scaled = scratch("scaled", values.size, np.float32)
        absmax = scratch("absmax", self._blocks(values.size), np.float32)
        np.abs(values, out=scaled)
        # Of numpy's ways to a maximum over short rows, reduceat is twice as fast as the next.
        np.maximum.reduceat(scaled, np.arange(0, values.size, self.block), out=absmax)
        if not np.isfinite(absmax).all():
            raise NonFiniteValues("the values to be quantised hold NaN or Inf (in float32)")
        whole = values.size // self.block
        full = whole * self.block
        floor = np.maximum(absmax, SMALLEST_ABSMAX)
        rows = (whole, self.block)
        factors = np.divide(np.float32(1), floor[:whole])[:, None]
        np.multiply(values[:full].reshape(rows), factors, out=scaled[:full].reshape(rows))
        if full < values.size:
            absmax[whole] = floor[whole]
            np.divide(values[full:], floor[whole], out=scaled[full:])
        return scaled, absmax

    def _decoded(
        self, payload: memoryview, count: int, dtype: DType, target: Floats | None = None
    ) -> Iterator[tuple[int, int, Floats]]:
        """The decoded pieces (start, stop, values), written to ``target`` or, without it, to a scratch."""
        if payload.nbytes != self.encoded_size(count, dtype):
            raise PayloadMismatch(
                f"{self.name} payload of {payload.nbytes} bytes; {count} elements take "
                f"{self.encoded_size(count, dtype)}"
            )
        codes, stored = np.split(as_bytes(payload), [self.code.nbytes(count)])
        blocks = self._blocks(count)
        for start, stop in pieces(count):
            first = start // self.block
            absmax = self.absmax_format.read(first, first + self._blocks(stop - start), blocks, stored)
            values = self.code.decode(codes[self.code.nbytes(start) : self.code.nbytes(stop)], stop - start)
            whole = values.size // self.block
            full = whole * self.block
            rows = (whole, self.block)
            out = values if target is None else target[start:stop]
            with np.errstate(over="ignore", invalid="ignore"):
                np.multiply(values[:full].reshape(rows), absmax[:whole, None], out=out[:full].reshape(rows))
                if full < values.size:
                    np.multiply(values[full:], absmax[whole], out=out[full:])
            yield start, stop, out
