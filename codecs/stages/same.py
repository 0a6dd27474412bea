"""``same``: names what equals a base that both ends hold, instead of sending it.

A slice whose bits are those of the base, of whatever dtype, has an empty payload. Every other slice goes on
unchanged, so ``same | none`` and ``same | lossless`` lose nothing.
"""

from __future__ import annotations

import numpy as np

from tensorbus.codecs.base import Accumulator, Encoded, SliceCodec, Stage
from tensorbus.codecs.bases import check_base_id, keep_apart, read_piece
from tensorbus.codecs.context import CodecContext
from tensorbus.codecs.dtypes import DTYPES, DType
from tensorbus.codecs.floats import QUANTISABLE, Bytes, as_bytes
from tensorbus.codecs.item import ItemSpec
from tensorbus.codecs.registry import quantizer
from tensorbus.codecs.scratch import pieces
from tensorbus.codecs.staged import StagedCodec

SMALLEST = 256
"""Bytes; to name the base takes about as much, so what is smaller is sent."""


class Same(Stage):
    """Leaves out slices that equal the base.

    Args:
        base: its id; None is the one that the context gives.

    Raises:
        InvalidSpecification: that is no id of a base.
    """

    name = "same"
    primary = "base"
    exact = True
    against_base = True

    def __init__(self, base: str | None = None) -> None:
        self.base = check_base_id(base)

    def config(self) -> dict[str, object]:
        return {"name": self.name} if self.base is None else {"name": self.name, "base": self.base}

    def accepts(self, dtype: DType) -> bool:
        return True

    def inner_dtype(self, dtype: DType) -> DType:
        return dtype

    def resolved(self, context: CodecContext) -> Same:
        return Same(context.find(self.base).id)

    def fits(self, spec: ItemSpec, context: CodecContext) -> bool:
        return spec.nbytes >= SMALLEST and context.find(self.base).holds(spec)

    def wrap(self, inner: SliceCodec, spec: ItemSpec, context: CodecContext) -> SliceCodec:
        return _SameCodec(self, inner, spec, context)


class _SameCodec(StagedCodec):
    def __init__(self, stage: Same, inner: SliceCodec, spec: ItemSpec, context: CodecContext) -> None:
        super().__init__(stage, inner, spec.dtype)
        self.grain = inner.grain
        self.base = stage.base
        self.fixed_size = False
        self.spec = spec
        self._context = context

    def encode(self, source: memoryview, offset: int, out: memoryview) -> Encoded:
        size = self.dtype.itemsize
        original = as_bytes(source)
        # Piece by piece: where something changed, the first piece mostly shows it.
        for start, stop in pieces(original.size // size):
            base = self.base_piece(offset + start, stop - start)
            if not np.array_equal(original[start * size : stop * size], base):
                return self.inner.encode(source, offset, out)
        return Encoded(0)

    def decode(self, payload: memoryview, offset: int, out: memoryview) -> None:
        base = self._context.require(str(self.base), self.spec)
        count = len(out) // self.dtype.itemsize
        keep_apart(base, self.spec, offset, count, out)
        if payload:
            self.inner.decode(payload, offset, out)
        else:
            base.read_into(self.spec, offset, count, out)

    def accumulate(self, payload: memoryview, offset: int, accumulator: Accumulator, weight: float) -> None:
        if payload:
            self.inner.accumulate(payload, offset, accumulator, weight)
        else:
            self.accumulate_base(offset, accumulator, weight)

    def needs_base(self, payload: memoryview) -> bool:
        return not payload

    def change(self) -> SliceCodec:
        return _Change(self)

    def base_piece(self, offset: int, count: int) -> Bytes:
        return read_piece(self._context.require(str(self.base), self.spec), self.spec, offset, count)

    def accumulate_base(self, offset: int, accumulator: Accumulator, weight: float) -> None:
        for start, stop in pieces(accumulator.size):
            base = self.base_piece(offset + start, stop - start)
            quantizer("none").accumulate(base.data, self.dtype, accumulator[start:stop], weight)


class _Change(StagedCodec):
    """What a slice adds to the base; the base is needed only for slices that are there.

    Its values are float32, or float64 for dtypes that are summed so.
    """

    def __init__(self, codec: _SameCodec) -> None:
        summed = "float32" if codec.dtype.name in QUANTISABLE and codec.dtype.name != "float64" else "float64"
        super().__init__(codec.stage, codec.inner, DTYPES[summed])
        self.grain = codec.grain
        self.base = codec.base
        self._codec = codec

    def encode(self, source: memoryview, offset: int, out: memoryview) -> Encoded:
        raise TypeError("a change is only decoded")

    def decode(self, payload: memoryview, offset: int, out: memoryview) -> None:
        change = np.frombuffer(out, np.dtype(self.dtype.name))
        change.fill(0)
        self.accumulate(payload, offset, change, 1.0)

    def accumulate(self, payload: memoryview, offset: int, accumulator: Accumulator, weight: float) -> None:
        if payload:
            self._codec.inner.accumulate(payload, offset, accumulator, weight)
            self._codec.accumulate_base(offset, accumulator, -weight)
