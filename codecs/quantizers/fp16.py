"""``fp16``: IEEE 754 half precision."""

from __future__ import annotations

from tensorbus.codecs.dtypes import DTYPES

from .halves import HalfQuantizer


class FP16(HalfQuantizer):
    """Rounds to float16, which ends at ±65504."""

    name = "fp16"
    half = DTYPES["float16"]
    largest = 65504.0
