"""``delta``: the difference from a base that both ends hold, such as the global model of a round.

The difference is computed in float32 and rounded to it once (in float64 for float64 tensors, then rounded to
float32); one that is NaN or Inf is refused, even before ``none``. Decoding adds it to the base in float32
(float64 for float64) and rounds the sum to the original dtype, to nearest, ties to even. So the values come
back within the quantizer's error of the difference and these roundings. A slice that equals the base has an
empty payload, and is the base's bits again, signs of zeros and NaNs included.
"""

from __future__ import annotations

import numpy as np

from tensorbus.codecs.base import Accumulator, Encoded, SliceCodec, Stage
from tensorbus.codecs.bases import check_base_id, keep_apart, read_parts
from tensorbus.codecs.changes import add, subtract
from tensorbus.codecs.context import CodecContext
from tensorbus.codecs.dtypes import DTYPES, DType
from tensorbus.codecs.floats import QUANTISABLE, as_bytes
from tensorbus.codecs.item import ItemSpec
from tensorbus.codecs.registry import quantizer
from tensorbus.codecs.staged import StagedCodec
from tensorbus.codecs.working import working

FLOAT32 = DTYPES["float32"]


class Delta(Stage):
    """Sends what was added to the base.

    Args:
        base: its id; None is the one that the context gives.

    Raises:
        InvalidSpecification: that is no id of a base.
    """

    name = "delta"
    primary = "base"
    against_base = True
    zero_is_base = True

    def __init__(self, base: str | None = None) -> None:
        self.base = check_base_id(base)

    def config(self) -> dict[str, object]:
        return {"name": self.name} if self.base is None else {"name": self.name, "base": self.base}

    def accepts(self, dtype: DType) -> bool:
        return dtype.name in QUANTISABLE

    def inner_dtype(self, dtype: DType) -> DType:
        return FLOAT32

    def resolved(self, context: CodecContext) -> Delta:
        return Delta(context.find(self.base).id)

    def fits(self, spec: ItemSpec, context: CodecContext) -> bool:
        return context.find(self.base).holds(spec)

    def wrap(self, inner: SliceCodec, spec: ItemSpec, context: CodecContext) -> SliceCodec:
        return _DeltaCodec(self, inner, spec, context)


class _DeltaCodec(StagedCodec):
    def __init__(self, stage: Delta, inner: SliceCodec, spec: ItemSpec, context: CodecContext) -> None:
        super().__init__(stage, inner, spec.dtype)
        self.grain = inner.grain
        self.base = stage.base
        self._spec = spec
        self._context = context

    def encode(self, source: memoryview, offset: int, out: memoryview) -> Encoded:
        size = self.dtype.itemsize
        original = as_bytes(source)
        change = working("delta", original.size // size)
        base = self._context.require(str(self.base), self._spec)
        for start, stop, part in read_parts(base, self._spec, offset, change.size):
            subtract(original[start * size : stop * size], part, self.dtype, change[start:stop])
        return self.inner.encode(change.view(np.uint8).data, offset, out)

    def decode(self, payload: memoryview, offset: int, out: memoryview) -> None:
        size = self.dtype.itemsize
        target = as_bytes(out)
        count = target.size // size
        base = self._context.require(str(self.base), self._spec)
        keep_apart(base, self._spec, offset, count, out)
        if not payload:
            base.read_into(self._spec, offset, count, out)
            return
        # The difference comes to where the result will be if that is as large, else to working memory.
        change = target.view(np.float32) if self.dtype == FLOAT32 else working("delta", count)
        self.inner.decode(payload, offset, change.view(np.uint8).data)
        for start, stop, part in read_parts(base, self._spec, offset, count):
            add(part, change[start:stop], self.dtype, target[start * size : stop * size])

    def accumulate(self, payload: memoryview, offset: int, accumulator: Accumulator, weight: float) -> None:
        values = working("sum", accumulator.size * self.dtype.itemsize // 4 + 1).view(np.uint8)
        values = values[: accumulator.size * self.dtype.itemsize]
        self.decode(payload, offset, values.data)
        quantizer("none").accumulate(values.data, self.dtype, accumulator, weight)

    def change(self) -> SliceCodec:
        return self.inner
