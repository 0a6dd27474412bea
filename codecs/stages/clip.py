"""``clip``: bounds the L2 norm of an update as a whole.

    values sent = values · min(1, norm / ‖values of all tensors‖₂)

So no site moves the model by more than ``norm`` times its weight (McMahan et al., Learning Differentially
Private Recurrent Language Models, 2018). It stands right behind ``delta``, since it is the change that is
bounded. The norm is that of the float32 differences, summed in float64; the publisher reads its container
once more to know it. There is nothing to undo, so the receiver does not hear of it.

Every tensor passes it: those that are kept, and those that a quantizer does not make smaller, go as ``delta |
clip | none``. What is no float cannot be clipped, and is refused: leave it out with ``skip``.
"""

from __future__ import annotations

import math

import numpy as np

from tensorbus.codecs.base import Accumulator, Encoded, SliceCodec, Stage
from tensorbus.codecs.context import CodecContext
from tensorbus.codecs.dtypes import DType
from tensorbus.codecs.floats import QUANTISABLE
from tensorbus.codecs.item import ItemSpec
from tensorbus.codecs.privacy import Privacy
from tensorbus.codecs.staged import StagedCodec
from tensorbus.codecs.working import overwritable
from tensorbus.errors import InvalidSpecification

MOST = 1e30
"""Of norms and noise multipliers; float32 has to hold what is made of them."""


class Clip(Stage):
    """Scales an update down to ``norm`` where it is longer.

    Raises:
        InvalidSpecification: ``norm`` is no positive number up to 1e30.
    """

    name = "clip"
    primary = "norm"
    undone = False
    private = True
    follows = "delta"

    def __init__(self, norm: float) -> None:
        self.norm = positive(norm, "the norm of clip")

    def config(self) -> dict[str, object]:
        return {"name": self.name, "norm": self.norm}

    def accepts(self, dtype: DType) -> bool:
        return dtype.name in QUANTISABLE

    def inner_dtype(self, dtype: DType) -> DType:
        return dtype

    def resolved(self, context: CodecContext) -> Clip:
        privacy_of(context, self.name)
        return self

    def wrap(self, inner: SliceCodec, spec: ItemSpec, context: CodecContext) -> SliceCodec:
        return _ClipCodec(self, inner, spec, privacy_of(context, self.name))


class _ClipCodec(StagedCodec):
    def __init__(self, stage: Clip, inner: SliceCodec, spec: ItemSpec, privacy: Privacy) -> None:
        super().__init__(stage, inner, spec.dtype)
        self._limit = stage.norm
        self._privacy = privacy

    def encode(self, source: memoryview, offset: int, out: memoryview) -> Encoded:
        norm = self._privacy.norm
        if norm > self._limit:
            values = overwritable(source, self.dtype, "clipped")
            # Rounded down, so that rounding of the values is what may exceed the limit, and nothing else.
            np.multiply(values, np.nextafter(np.float32(self._limit / norm), np.float32(0)), out=values)
            source = values.view(np.uint8).data
        return self.inner.encode(source, offset, out)

    def decode(self, payload: memoryview, offset: int, out: memoryview) -> None:
        self.inner.decode(payload, offset, out)

    def accumulate(self, payload: memoryview, offset: int, accumulator: Accumulator, weight: float) -> None:
        self.inner.accumulate(payload, offset, accumulator, weight)


def positive(value: object, what: str) -> float:
    """``value`` as a float.

    Raises:
        InvalidSpecification: it is no positive number up to 1e30.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MOST:
        raise InvalidSpecification(f"{what} is a positive number up to {MOST:.0e}, not {value!r:.80}")
    if not math.isfinite(value):
        raise InvalidSpecification(f"{what} is not finite")
    return float(value)


def privacy_of(context: CodecContext, stage: str) -> Privacy:
    """What the context has of it.

    Raises:
        InvalidSpecification: nothing: only who publishes a message can use these stages.
    """
    if context.privacy is None:
        raise InvalidSpecification(f"{stage} works on whole messages, as they are published")
    return context.privacy
