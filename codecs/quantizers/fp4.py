"""``fp4``: a four-bit float with two bits of exponent and one of mantissa, as bitsandbytes has it."""

from __future__ import annotations

from .blockwise import BlockwiseQuantizer
from .fourbit import BLOCKSIZES, FourBitCode

_MAGNITUDES = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
"""In the order of the three lower bits of the code; the fourth is the sign."""

LEVELS = (*(one / 12 for one in _MAGNITUDES), *(0.0 - one / 12 for one in _MAGNITUDES))


class FP4(BlockwiseQuantizer):
    """Levels that double as floats do: 4 bits a value and 4 bytes a block of 64.

    Zero has two codes; as in bitsandbytes on CPUs, tiny positive values get the one with the sign bit.
    """

    name = "fp4"
    kernel = "fp4"
    code = FourBitCode(LEVELS)
    blocksizes = BLOCKSIZES

    def __init__(self, blocksize: int = 64) -> None:
        super().__init__(blocksize)
