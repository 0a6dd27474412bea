"""``feedback``: adds what the last message left out of a tensor, and keeps what this one leaves out.

    values sent = quantised(values + residual),   residual = values + residual - values sent

So errors do not add up over the rounds: the sum of what was sent differs from the sum of what was meant by
one residual, however many messages there were (Seide et al., 1-Bit Stochastic Gradient Descent, 2014;
Karimireddy et al., Error Feedback Fixes SignSGD, 2019). Computed in float32. There is nothing to undo, so the
receiver does not hear of it, and what is sent is read like that of the same pipeline without feedback.
"""

from __future__ import annotations

import numpy as np

from tensorbus.codecs.base import Accumulator, Encoded, SliceCodec, Stage
from tensorbus.codecs.context import CodecContext
from tensorbus.codecs.dtypes import DTYPES, DType
from tensorbus.codecs.floats import QUANTISABLE
from tensorbus.codecs.item import ItemSpec
from tensorbus.codecs.residuals import ResidualPass
from tensorbus.codecs.staged import StagedCodec
from tensorbus.codecs.values import convert
from tensorbus.codecs.working import Floats, overwritable, working
from tensorbus.errors import InvalidSpecification


class Feedback(Stage):
    """Error feedback; the publisher's context has the residuals."""

    name = "feedback"
    undone = False

    def config(self) -> dict[str, object]:
        return {"name": self.name}

    def accepts(self, dtype: DType) -> bool:
        return dtype.name in QUANTISABLE

    def inner_dtype(self, dtype: DType) -> DType:
        return dtype

    def resolved(self, context: CodecContext) -> Feedback:
        _residuals(context)
        return self

    def wrap(self, inner: SliceCodec, spec: ItemSpec, context: CodecContext) -> SliceCodec:
        return _FeedbackCodec(self, inner, spec, _residuals(context))


def _residuals(context: CodecContext) -> ResidualPass:
    if context.residuals is None:
        raise InvalidSpecification(
            "feedback keeps residuals from message to message, and has no place for them: give residuals="
        )
    return context.residuals


class _FeedbackCodec(StagedCodec):
    def __init__(self, stage: Feedback, inner: SliceCodec, spec: ItemSpec, residuals: ResidualPass) -> None:
        super().__init__(stage, inner, spec.dtype)
        self._spec = spec
        self._residuals = residuals

    def encode(self, source: memoryview, offset: int, out: memoryview) -> Encoded:
        wanted = overwritable(source, self.dtype, "wanted")
        self._residuals.add_to(self._spec, offset, wanted)
        # Read-only: what stands behind must leave the values alone, they are needed once more.
        encoded = self.inner.encode(self._as_original(wanted).toreadonly(), offset, out)
        # The same as to decode and subtract, but without room for what was decoded.
        self.inner.accumulate(out[: encoded.nbytes], offset, wanted, -1.0)
        self._residuals.keep(self._spec, offset, wanted)
        return encoded

    def decode(self, payload: memoryview, offset: int, out: memoryview) -> None:
        self.inner.decode(payload, offset, out)

    def accumulate(self, payload: memoryview, offset: int, accumulator: Accumulator, weight: float) -> None:
        self.inner.accumulate(payload, offset, accumulator, weight)

    def _as_original(self, values: Floats) -> memoryview:
        """The values in the dtype that the receiver will decode them to."""
        if self.dtype.name == "float32":
            return values.view(np.uint8).data
        size = self.dtype.itemsize
        rounded = working("rounded", -(-values.size * size // 4)).view(np.uint8)[: values.size * size]
        convert(values.view(np.uint8), DTYPES["float32"], rounded, self.dtype)
        return rounded.data
