"""``bf16``: the upper half of a float32."""

from __future__ import annotations

from tensorbus.codecs.dtypes import DTYPES

from .halves import HalfQuantizer


class BF16(HalfQuantizer):
    """Rounds to bfloat16, which has the range of float32 and 8 significant bits."""

    name = "bf16"
    half = DTYPES["bfloat16"]
    largest = (2 - 2**-7) * 2.0**127
