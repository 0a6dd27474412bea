"""``int8``: 8-bit dynamic quantisation in blocks, in the layout of bitsandbytes."""

from __future__ import annotations

from .blockwise import BlockwiseQuantizer
from .dynamic import DYNAMIC


class Int8(BlockwiseQuantizer):
    """A byte a value and 4 bytes a block of 4096; the nearest level, so that a zero stays zero."""

    name = "int8"
    kernel = "dynamic"
    code = DYNAMIC
    blocksizes = (64, 128, 256, 512, 1024, 2048, 4096)

    def __init__(self, blocksize: int = 4096) -> None:
        super().__init__(blocksize)
