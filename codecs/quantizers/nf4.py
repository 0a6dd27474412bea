"""``nf4``: four-bit NormalFloat of QLoRA (Dettmers et al. 2023, arXiv:2305.14314), as bitsandbytes has it."""

from __future__ import annotations

from .blockwise import BlockwiseQuantizer
from .fourbit import BLOCKSIZES, FourBitCode

LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""Quantiles of the normal distribution, as bitsandbytes rounds them."""


NF4_CODE = FourBitCode(LEVELS)


class NF4(BlockwiseQuantizer):
    """Levels spaced for normally distributed values: 4 bits a value and 4 bytes a block of 64."""

    name = "nf4"
    kernel = "nf4"
    code = NF4_CODE
    blocksizes = BLOCKSIZES

    def __init__(self, blocksize: int = 64) -> None:
        super().__init__(blocksize)
