"""What ``uniform`` computes, in numpy: the twin of kernels/even.c, to the bit."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tensorbus.codecs import huffman
from tensorbus.codecs.base import Accumulator
from tensorbus.codecs.dtypes import DType
from tensorbus.codecs.floats import Bytes, add_weighted, as_bytes, narrow, widen
from tensorbus.codecs.rms import rms
from tensorbus.codecs.scratch import pieces, scratch
from tensorbus.errors import NonFiniteValues, PayloadMismatch

Floats = npt.NDArray[np.float32]

BLOCK = 4096
GROUP = 256 * BLOCK

TAIL = 20.0
"""Root mean squares that codes reach at least."""

HEAD = 8
ESCAPE = np.dtype([("index", "<u4"), ("value", "<f4")])
FLOAT32 = np.finfo(np.float32)
LARGEST = {
    "float16": 65504.0,
    "bfloat16": (2 - 2**-7) * 2.0**127,
    "float32": float(FLOAT32.max),
    "float64": float(FLOAT32.max),
}
"""What values are decoded to at most, so that they are finite in their own dtype."""


class _Memory(threading.local):
    def __init__(self) -> None:
        # Room for the escapes of a group at the worst, too.
        self.symbols = np.empty(GROUP + ESCAPE.itemsize * int(GROUP / TAIL**2), np.uint8)


_memory = _Memory()


def group_symbols() -> Bytes:
    """Memory for the symbols and then the escapes of a group, which this thread keeps: about 1 MiB."""
    return _memory.symbols


class EvenSteps:
    """The codes of one ``step``.

    Attributes:
        low_bits: of the codes, which are stored beside the symbols.
        range: the largest code.
        gain: by which the scale is less than the step.
    """

    def __init__(self, step: float) -> None:
        self.step = step
        self.low_bits = next(bits for bits in (0, 1, 2, 4) if ((128 << bits) - 1) * step >= TAIL)
        self.range = (128 << self.low_bits) - 1
        self.gain = 1.0 / (1.0 + step * step / 12.0)

    def bound(self, count: int) -> int:
        """Bytes of payload for ``count`` values at most."""
        blocks, tail = divmod(count, BLOCK)
        escapes = blocks * self._escapes(BLOCK) + self._escapes(tail)
        low = blocks * self._low_bytes(BLOCK) + self._low_bytes(tail)
        groups = -(-count // GROUP)
        heads = groups * (HEAD + huffman.bound(0)) + 4 * -(-count // BLOCK)
        return heads + low + ESCAPE.itemsize * escapes + count

    def encode(self, source: memoryview, count: int, dtype: DType, out: memoryview) -> int:
        """Write the payload of the values in ``source``; its bytes. Raises as Quantizer.encode."""
        original, payload = as_bytes(source), as_bytes(out)
        at = 0
        for first in range(0, count, GROUP):
            group = original[first * dtype.itemsize : (first + GROUP) * dtype.itemsize]
            at += self._encode_group(group, dtype, payload[at:])
        return at

    def decode(self, payload: memoryview, count: int, dtype: DType, out: memoryview) -> None:
        """As Quantizer.decode."""
        target = as_bytes(out)
        for start, stop, values in self._decoded(payload, count):
            narrow(values, dtype, target[start * dtype.itemsize : stop * dtype.itemsize])

    def accumulate(self, payload: memoryview, dtype: DType, accumulator: Accumulator, weight: float) -> None:
        """As Quantizer.accumulate."""
        for start, stop, values in self._decoded(payload, accumulator.size):
            if dtype.itemsize == 2:
                rounded = scratch("rounded", values.size, np.uint16).view(np.uint8)
                narrow(values, dtype, rounded)
                values = widen(rounded, dtype)
            add_weighted(values, accumulator[start:stop], weight)

    def cut(self, payload: memoryview, count: int, start: int, stop: int) -> memoryview:
        """As Quantizer.cut, at multiples of ``GROUP``."""
        rest = as_bytes(payload)
        at = begin = 0
        try:
            for first in range(0, stop, GROUP):
                begin = at if first == start else begin
                at += self._places(rest[at:], min(GROUP, count - first)).end
        except _Malformed:
            raise _mismatch(payload, count) from None
        # What stands behind the last group is found out when that is decoded.
        return payload[begin:] if stop == count else payload[begin:at]

    def _escapes(self, count: int) -> int:
        """Escapes of a block at most: the squares of more would add up to more than the root mean square."""
        return math.floor(count / (self.range * self.step) ** 2)

    def _low_bytes(self, count: int) -> int:
        return -(-count * self.low_bits // 8)

    # --- encoding ------------------------------------------------------------------------------------

    def _encode_group(self, source: Bytes, dtype: DType, out: Bytes) -> int:
        count = source.size // dtype.itemsize
        at = HEAD + 4 * -(-count // BLOCK)
        scales = out[HEAD:at].view(np.float32)
        symbols, coded = group_symbols(), 0
        escapes: list[npt.NDArray[np.void]] = []
        for start, stop in pieces(count):
            values = widen(source[start * dtype.itemsize : stop * dtype.itemsize], dtype)
            units, factors = self._units(values)
            with np.errstate(under="ignore"):
                scale = (self.gain * units).astype(np.float32)
            first = start // BLOCK
            scales[first : first + scale.size] = scale
            codes, escaped = self._codes(values, factors)
            escaped["index"] += np.uint32(start)
            escapes.append(escaped)
            with np.errstate(divide="ignore"):
                limits = np.floor(LARGEST[dtype.name] / scale.astype(np.float64))
            limits = np.minimum(limits, self.range).astype(np.float32)[:, None]
            np.clip(codes, -limits, limits, out=codes)
            # Of a tail, what fills the block up is cut off again.
            kept = codes[scale != 0].astype(np.int32).reshape(-1)
            kept = kept[: kept.size - (codes.size - values.size if scale[-1] else 0)]
            symbols[coded : coded + kept.size] = (kept >> self.low_bits) + 128
            coded += kept.size
            if self.low_bits:
                lows = (kept & ((1 << self.low_bits) - 1)).astype(np.uint8)
                for begin in range(0, lows.size, BLOCK):
                    packed = self._pack(lows[begin : begin + BLOCK])
                    out[at : at + packed.size] = packed
                    at += packed.size
        stored = np.concatenate(escapes).view(np.uint8)
        out[at : at + stored.size] = stored
        at += stored.size
        written = huffman.encode(symbols[:coded], out[at:].data) if coded else 0
        out[:HEAD] = np.array([stored.size // ESCAPE.itemsize, written], "<u4").view(np.uint8)
        return at + written

    def _units(self, values: Floats) -> tuple[npt.NDArray[np.float64], Floats]:
        """The step of each block, and what its values are multiplied by; both 0 if it counts as zeros."""
        roots = rms(values, BLOCK)
        if not np.isfinite(roots).all():
            raise NonFiniteValues("the values to be quantised hold NaN or Inf (in float32)")
        wide = np.minimum(self.step * roots.astype(np.float64), float(FLOAT32.max))
        with np.errstate(under="ignore"):
            units = wide.astype(np.float32).astype(np.float64)
        units[units < float(FLOAT32.tiny)] = 0
        factors = np.zeros(units.size)
        with np.errstate(under="ignore"):
            np.divide(1.0, units, out=factors, where=units > 0)
            return units, factors.astype(np.float32)

    def _codes(self, values: Floats, factors: Floats) -> tuple[Floats, npt.NDArray[np.void]]:
        """The codes, a row for each block, and the escapes, whose codes are 0."""
        codes = scratch("codes", factors.size * BLOCK, np.float32)
        codes[: values.size] = values
        codes[values.size :] = 0
        rows = codes.reshape(-1, BLOCK)
        with np.errstate(under="ignore"):
            np.multiply(rows, factors[:, None], out=rows)
        np.rint(rows, out=rows)
        beyond = np.flatnonzero(np.abs(codes) > self.range)
        escapes = np.empty(beyond.size, ESCAPE)
        escapes["index"], escapes["value"] = beyond, values[beyond]
        codes[beyond] = 0
        return rows, escapes

    def _pack(self, lows: Bytes) -> Bytes:
        planes = np.zeros((8 // self.low_bits, self._low_bytes(lows.size)), np.uint8)
        planes.reshape(-1)[: lows.size] = lows
        shifts = np.arange(0, 8, self.low_bits, dtype=np.uint8)[:, None]
        return np.bitwise_or.reduce(planes << shifts, axis=0)

    # --- decoding ------------------------------------------------------------------------------------

    def _decoded(self, payload: memoryview, count: int) -> Iterator[tuple[int, int, Floats]]:
        """The decoded pieces (start, stop, values), in a scratch.

        Raises:
            PayloadMismatch: the payload is malformed; pieces may have been decoded before.
        """
        rest = as_bytes(payload)
        try:
            for first in range(0, count, GROUP):
                at, group = self._open_group(rest, min(GROUP, count - first))
                for start, stop, values in group:
                    yield first + start, first + stop, values
                rest = rest[at:]
            if rest.size:
                raise _Malformed
        except _Malformed:
            raise _mismatch(payload, count) from None

    def _open_group(self, payload: Bytes, count: int) -> tuple[int, Iterator[tuple[int, int, Floats]]]:
        """The bytes of the group at the start of ``payload``, and its pieces."""
        places = self._places(payload, count)
        scales, sizes = places.scales, places.sizes
        escapes = payload[places.escapes : places.symbols].view(ESCAPE)
        indices = escapes["index"].astype(np.int64)
        if indices.size and (indices[-1] >= count or (np.diff(indices) <= 0).any()):
            raise _Malformed
        coded = int(sizes.sum())
        symbols = group_symbols()[:coded]
        if coded:
            huffman.decode(payload[places.symbols : places.end].data, coded, symbols)
        packed = payload[places.low : places.escapes]
        return places.end, self._group_pieces(count, scales, sizes, packed, escapes, symbols)

    def _places(self, payload: Bytes, count: int) -> _Places:
        """Where the parts of the group are that begins with ``payload``."""
        blocks = -(-count // BLOCK)
        low = HEAD + 4 * blocks
        if payload.size < low:
            raise _Malformed
        number, written = (int(word) for word in payload[:HEAD].view(np.dtype("<u4")))
        scales = payload[HEAD:low].view(np.dtype("<f4"))
        sizes = np.full(blocks, BLOCK)
        sizes[-1] = count - BLOCK * (blocks - 1)
        sizes[scales == 0] = 0
        escapes = low + int((-(-sizes * self.low_bits // 8)).sum())
        symbols = escapes + ESCAPE.itemsize * number
        if payload.size < symbols + written or (written and not sizes.any()):
            raise _Malformed
        return _Places(scales, sizes, low, escapes, symbols, symbols + written)

    def _group_pieces(
        self,
        count: int,
        scales: Floats,
        sizes: npt.NDArray[np.int64],
        packed: Bytes,
        escapes: npt.NDArray[np.void],
        symbols: Bytes,
    ) -> Iterator[tuple[int, int, Floats]]:
        for start, stop in pieces(count):
            values = scratch("values", stop - start, np.float32)
            for begin in range(start, stop, BLOCK):
                block = begin // BLOCK
                size, part = int(sizes[block]), values[begin - start : begin - start + BLOCK]
                part[size:] = 0
                if size:
                    codes = symbols[:size].astype(np.int32) - 128
                    if self.low_bits:
                        lows = self._low_bytes(size)
                        codes = (codes << self.low_bits) | self._unpack(packed[:lows], size)
                        packed = packed[lows:]
                    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
                        np.multiply(codes.astype(np.float32), scales[block], out=part)
                symbols = symbols[size:]
            here = slice(*np.searchsorted(escapes["index"], [start, stop]))
            values[escapes["index"][here] - np.uint32(start)] = escapes["value"][here]
            yield start, stop, values

    def _unpack(self, packed: Bytes, count: int) -> Bytes:
        shifts = np.arange(0, 8, self.low_bits, dtype=np.uint8)[:, None]
        return (packed >> shifts & np.uint8((1 << self.low_bits) - 1)).reshape(-1)[:count]


@dataclass(frozen=True, slots=True)
class _Places:
    """Of a group: the scales, how many values of each block are coded, and where its other parts begin."""

    scales: Floats
    sizes: npt.NDArray[np.int64]
    low: int
    escapes: int
    symbols: int
    end: int


class _Malformed(Exception):
    """The payload is none of that many values."""


def _mismatch(payload: memoryview, count: int) -> PayloadMismatch:
    return PayloadMismatch(f"{payload.nbytes} bytes are no uniform payload of {count} elements")
