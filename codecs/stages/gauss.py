"""``gauss``: adds normal noise to what was clipped, the Gaussian mechanism of differential privacy.

    values sent = clipped values + N(0, (multiplier · norm)²)

It stands right behind ``clip``, whose norm is how much one site can change the values at most; what comes
behind it, a quantizer above all, works on values that are private already and changes nothing about that.
``tensorbus privacy`` says what a multiplier is worth over many rounds.

The noise is that of numpy's Philox generator, seeded anew for each message with 256 bits of the system's
randomness. Floats do not take every value, and how they are rounded gives away something about what was
added to what (Mironov, On Significance of the Least Significant Bits, 2012); a quantizer of few bits behind
the noise leaves little of that, ``none`` leaves it.
"""

from __future__ import annotations

import numpy as np

from tensorbus.codecs.base import Accumulator, Encoded, SliceCodec, Stage
from tensorbus.codecs.context import CodecContext
from tensorbus.codecs.dtypes import DType
from tensorbus.codecs.floats import QUANTISABLE
from tensorbus.codecs.item import ItemSpec
from tensorbus.codecs.privacy import Privacy
from tensorbus.codecs.scratch import pieces, scratch
from tensorbus.codecs.staged import StagedCodec
from tensorbus.codecs.working import overwritable

from .clip import positive, privacy_of


class Gauss(Stage):
    """Adds noise of standard deviation ``multiplier`` times the norm of the clip before it.

    Raises:
        InvalidSpecification: ``multiplier`` is no positive number up to 1e30.
    """

    name = "gauss"
    primary = "multiplier"
    undone = False
    private = True
    follows = "clip"

    def __init__(self, multiplier: float) -> None:
        self.multiplier = positive(multiplier, "the multiplier of gauss")

    def config(self) -> dict[str, object]:
        return {"name": self.name, "multiplier": self.multiplier}

    def accepts(self, dtype: DType) -> bool:
        return dtype.name in QUANTISABLE

    def inner_dtype(self, dtype: DType) -> DType:
        return dtype

    def resolved(self, context: CodecContext) -> Gauss:
        privacy_of(context, self.name)
        return self

    def wrap(self, inner: SliceCodec, spec: ItemSpec, context: CodecContext) -> SliceCodec:
        return _GaussCodec(self, inner, spec, privacy_of(context, self.name))


class _GaussCodec(StagedCodec):
    def __init__(self, stage: Gauss, inner: SliceCodec, spec: ItemSpec, privacy: Privacy) -> None:
        super().__init__(stage, inner, spec.dtype)
        self._multiplier = stage.multiplier
        self._privacy = privacy
        self._name = spec.name

    def encode(self, source: memoryview, offset: int, out: memoryview) -> Encoded:
        values = overwritable(source, self.dtype, "noised")
        deviation = np.float32(self._multiplier * self._privacy.limit)
        generator = self._privacy.generator(self._name, offset)
        for start, stop in pieces(values.size):
            noise = scratch("noise", stop - start, np.float32)
            generator.standard_normal(out=noise, dtype=np.float32)
            noise *= deviation
            values[start:stop] += noise
        return self.inner.encode(values.view(np.uint8).data, offset, out)

    def decode(self, payload: memoryview, offset: int, out: memoryview) -> None:
        self.inner.decode(payload, offset, out)

    def accumulate(self, payload: memoryview, offset: int, accumulator: Accumulator, weight: float) -> None:
        self.inner.accumulate(payload, offset, accumulator, weight)
