"""Blockwise quantisation: a few bits for each value, and one absmax for each block of them.

    payload = codes of all values, then the absmax of all blocks (one float32 each, or as the format says)

The compiled kernels do the work where there are any, else numpy (portable.py); both give the same bytes. How
absmax is written is up to an ``AbsmaxFormat``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from tensorbus.codecs.base import Accumulator, Encoded, Quantizer
from tensorbus.codecs.dtypes import DType
from tensorbus.codecs.floats import QUANTISABLE, as_bytes, element_count
from tensorbus.codecs.kernels import native
from tensorbus.codecs.kernels.blockwise import NativeBlocks, native_blocks
from tensorbus.codecs.scratch import PIECE, scratch
from tensorbus.errors import InvalidSpecification, PayloadMismatch

from .portable import Code, PortableBlocks

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


class AbsmaxFormat(Protocol):
    """How the absmax of the blocks is written behind the codes."""

    def nbytes(self, blocks: int) -> int:
        """Bytes that the absmax of ``blocks`` blocks take."""
        ...

    def write(self, absmax: Floats, first: int, blocks: int, out: Bytes) -> None:
        """Write the absmax of the blocks from ``first`` on, out of ``blocks``, to their place in ``out``."""
        ...

    def read(self, first: int, last: int, blocks: int, stored: Bytes) -> Floats:
        """The absmax of the blocks ``first`` to ``last``, at most ``PIECE``, of ``blocks`` in all."""
        ...

    def cut(self, first: int, last: int, blocks: int, stored: Bytes) -> tuple[Bytes, ...]:
        """What is written of the blocks ``first`` to ``last`` if there are no others."""
        ...


class PlainAbsmax:
    """One float32 for each block."""

    def nbytes(self, blocks: int) -> int:
        return 4 * blocks

    def write(self, absmax: Floats, first: int, blocks: int, out: Bytes) -> None:
        np.copyto(out[4 * first : 4 * (first + absmax.size)].view(np.float32), absmax)

    def read(self, first: int, last: int, blocks: int, stored: Bytes) -> Floats:
        return stored[4 * first : 4 * last].view(np.float32)

    def cut(self, first: int, last: int, blocks: int, stored: Bytes) -> tuple[Bytes, ...]:
        return (stored[4 * first : 4 * last],)


class BlockwiseQuantizer(Quantizer):
    """What the quantizers with an absmax for each block have in common."""

    kernel: ClassVar[str]
    """What the code is called in the compiled kernels."""

    code: ClassVar[Code]
    """The same code in numpy."""

    absmax_format: ClassVar[AbsmaxFormat] = PlainAbsmax()
    blocksizes: ClassVar[tuple[int, ...]]
    """The block sizes that the codec allows."""

    def __init__(self, blocksize: int) -> None:
        if type(blocksize) is not int or blocksize not in self.blocksizes:
            allowed = ", ".join(map(str, self.blocksizes))
            raise InvalidSpecification(f"{self.name} has block sizes {allowed}, not {blocksize!r:.80}")
        self.block = blocksize
        self.blocksize = self.grain = blocksize

    def config(self) -> dict[str, object]:
        return {"name": self.name, "blocksize": self.block}

    def accepts(self, dtype: DType) -> bool:
        return dtype.name in QUANTISABLE

    def encoded_size(self, count: int, dtype: DType) -> int:
        return self.code.nbytes(count) + self.absmax_format.nbytes(self._blocks(count))

    def encode(self, source: memoryview, dtype: DType, out: memoryview) -> Encoded:
        original, count = as_bytes(source), element_count(source, dtype)
        nbytes, kernels = self.encoded_size(count, dtype), self._kernels()
        codes, stored = np.split(as_bytes(out)[:nbytes], [self.code.nbytes(count)])
        for start, stop in self._runs(count):
            values = original[start * dtype.itemsize : stop * dtype.itemsize]
            absmax = scratch("absmax", self._blocks(stop - start), np.float32)
            kernels.encode(values, dtype, self.block, self._codes(codes, start, stop), absmax)
            self.absmax_format.write(absmax, start // self.block, self._blocks(count), stored)
        return Encoded(nbytes)

    def decode(self, payload: memoryview, dtype: DType, out: memoryview) -> None:
        target, kernels = as_bytes(out), self._kernels()
        for start, stop, codes, absmax in self._split(payload, element_count(out, dtype), dtype):
            values = target[start * dtype.itemsize : stop * dtype.itemsize]
            kernels.decode(codes, absmax, dtype, self.block, values)

    def accumulate(self, payload: memoryview, dtype: DType, accumulator: Accumulator, weight: float) -> None:
        kernels = self._kernels()
        for start, stop, codes, absmax in self._split(payload, accumulator.size, dtype):
            kernels.accumulate(codes, absmax, dtype, self.block, accumulator[start:stop], weight)

    def cut(self, payload: memoryview, dtype: DType, count: int, start: int, stop: int) -> memoryview:
        codes, stored = self._fields(payload, count, dtype)
        blocks = start // self.block, self._blocks(stop), self._blocks(count)
        parts = self.absmax_format.cut(*blocks, stored)
        return np.concatenate([self._codes(codes, start, stop), *parts]).data

    def _kernels(self) -> NativeBlocks | PortableBlocks:
        library = native()
        return PortableBlocks(self.code) if library is None else native_blocks(library, self.kernel)

    def _split(
        self, payload: memoryview, count: int, dtype: DType
    ) -> Iterator[tuple[int, int, Bytes, Floats]]:
        """The runs of a payload: first element, behind the last, codes and absmax."""
        codes, stored = self._fields(payload, count, dtype)
        for start, stop in self._runs(count):
            first = start // self.block
            last = first + self._blocks(stop - start)
            absmax = self.absmax_format.read(first, last, self._blocks(count), stored)
            yield start, stop, self._codes(codes, start, stop), absmax

    def _fields(self, payload: memoryview, count: int, dtype: DType) -> tuple[Bytes, Bytes]:
        """The codes and what is stored of the absmax."""
        if payload.nbytes != self.encoded_size(count, dtype):
            raise PayloadMismatch(
                f"{self.name} payload of {payload.nbytes} bytes; {count} elements take "
                f"{self.encoded_size(count, dtype)}"
            )
        both, end = as_bytes(payload), self.code.nbytes(count)
        return both[:end], both[end:]

    def _runs(self, count: int) -> Iterator[tuple[int, int]]:
        """The bounds of runs of ``PIECE`` blocks: the absmax of one fit into a scratch."""
        step = PIECE * self.block
        for start in range(0, count, step):
            yield start, min(start + step, count)

    def _codes(self, codes: Bytes, start: int, stop: int) -> Bytes:
        return codes[self.code.nbytes(start) : self.code.nbytes(stop)]

    def _blocks(self, count: int) -> int:
        return -(-count // self.block)
