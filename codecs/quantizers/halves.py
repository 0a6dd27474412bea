"""Rounding to a 16-bit float: what ``fp16`` and ``bf16`` have in common."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from tensorbus.codecs.base import Accumulator, Encoded, Quantizer
from tensorbus.codecs.dtypes import DType
from tensorbus.codecs.floats import (
    Bytes,
    FloatArray,
    as_bytes,
    element_count,
    narrow,
    require_finite,
    widen,
)
from tensorbus.codecs.kernels import native
from tensorbus.codecs.kernels.values import native_values
from tensorbus.codecs.scratch import pieces, scratch
from tensorbus.codecs.values import accumulate, convert
from tensorbus.errors import PayloadMismatch


class HalfQuantizer(Quantizer):
    """Rounds to nearest, ties to even; values beyond the largest finite number are clipped to it and counted.

    float64 is rounded to float32 on the way.
    """

    clips = True
    grain = 1

    half: ClassVar[DType]
    """The 16-bit dtype."""

    largest: ClassVar[float]
    """The largest finite number of that dtype."""

    def config(self) -> dict[str, object]:
        return {"name": self.name}

    def accepts(self, dtype: DType) -> bool:
        return dtype.name in ("float64", "float32")

    def encoded_size(self, count: int, dtype: DType) -> int:
        return 2 * count

    def encode(self, source: memoryview, dtype: DType, out: memoryview) -> Encoded:
        count = element_count(source, dtype)
        original, payload = as_bytes(source), as_bytes(out)[: 2 * count]
        library = native()
        if library is not None:
            clipped = native_values(library).round(original, dtype, payload, self.half)
            return Encoded(2 * count, clipped)
        clipped = 0
        for start, stop in pieces(count):
            piece = original[start * dtype.itemsize : stop * dtype.itemsize]
            clipped += self._encode_piece(piece, dtype, payload[2 * start : 2 * stop])
        return Encoded(2 * count, clipped)

    def decode(self, payload: memoryview, dtype: DType, out: memoryview) -> None:
        convert(self._codes(payload, element_count(out, dtype)), self.half, as_bytes(out), dtype)

    def accumulate(self, payload: memoryview, dtype: DType, accumulator: Accumulator, weight: float) -> None:
        accumulate(self._codes(payload, accumulator.size), self.half, accumulator, weight)

    def cut(self, payload: memoryview, dtype: DType, count: int, start: int, stop: int) -> memoryview:
        self._codes(payload, count)
        return payload[2 * start : 2 * stop]

    def _encode_piece(self, piece: Bytes, dtype: DType, out: Bytes) -> int:
        values: FloatArray = piece.view(np.float64) if dtype.name == "float64" else piece.view(np.float32)
        # The two extremes show NaN, Inf and the need to clip, each in one pass.
        extreme = max(float(np.max(values)), -float(np.min(values)))
        if extreme <= self.largest:
            narrow(widen(piece, dtype), self.half, out)
            return 0
        require_finite(values)
        clipped = int(np.count_nonzero(np.abs(values) > self.largest))
        within = scratch("wide", values.size, np.float32)
        np.clip(values, -self.largest, self.largest, out=within, casting="same_kind")
        narrow(within, self.half, out)
        return clipped

    def _codes(self, payload: memoryview, count: int) -> Bytes:
        if payload.nbytes != 2 * count:
            raise PayloadMismatch(
                f"{self.name} payload of {payload.nbytes} bytes; {count} elements take {2 * count}"
            )
        return as_bytes(payload)
