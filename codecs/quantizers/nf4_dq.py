"""``nf4-dq``: nf4 whose absmax are themselves quantised to 8 bits, the double quantisation of QLoRA.

    payload = codes as of nf4, then the mean absmax of each group of 256 blocks (float32), then the largest
              difference from it in each group (float32), then a code of the dynamic map for each block

bitsandbytes takes one mean for the whole tensor; a mean for each group makes every slice decode on its own.
"""

from __future__ import annotations

import numpy as np

from tensorbus.codecs.scratch import scratch

from .blockwise import SMALLEST_ABSMAX, BlockwiseQuantizer, Bytes, Floats
from .dynamic import DYNAMIC
from .nf4 import NF4_CODE

BLOCK = 64
GROUP = 256
LARGEST = np.finfo(np.float32).max


class DoubleQuantisedAbsmax:
    """One byte for each block, and 8 bytes for each group of ``GROUP`` blocks."""

    def nbytes(self, blocks: int) -> int:
        return blocks + 8 * _groups(blocks)

    def write(self, absmax: Floats, first: int, blocks: int, out: Bytes) -> None:
        means, scales, codes = _fields(out, blocks)
        for start in range(0, absmax.size, GROUP):
            group, at = (first + start) // GROUP, first + start
            chunk = absmax[start : start + GROUP]
            mean = np.float32(np.mean(chunk, dtype=np.float64))
            centred = chunk - mean
            scale = np.maximum(np.max(np.abs(centred)), SMALLEST_ABSMAX)
            means[group], scales[group] = mean, scale
            DYNAMIC.encode(centred / scale, codes[at : at + chunk.size])

    def read(self, first: int, last: int, blocks: int, stored: Bytes) -> Floats:
        means, scales, codes = _fields(stored, blocks)
        absmax = scratch("absmax", last - first, np.float32)
        np.copyto(absmax, DYNAMIC.decode(codes[first:last], last - first))
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, absmax.size, GROUP):
                chunk = absmax[start : start + GROUP]
                np.multiply(chunk, scales[(first + start) // GROUP], out=chunk)
                np.add(chunk, means[(first + start) // GROUP], out=chunk)
        # Rounding can carry a small absmax below 0, or one near the end of float32 beyond it.
        return np.clip(absmax, 0, LARGEST, out=absmax)


class NF4DQ(BlockwiseQuantizer):
    """4.127 bits a value: 12.90 % of float32, at the error of nf4."""

    name = "nf4-dq"
    code = NF4_CODE
    absmax_format = DoubleQuantisedAbsmax()
    blocksizes = (BLOCK,)

    def __init__(self) -> None:
        super().__init__(BLOCK)
        self.blocksize = BLOCK * GROUP

    def config(self) -> dict[str, object]:
        return {"name": self.name}


def _groups(blocks: int) -> int:
    return -(-blocks // GROUP)


def _fields(stored: Bytes, blocks: int) -> tuple[Floats, Floats, Bytes]:
    """Means, scales and codes."""
    groups = _groups(blocks)
    means, scales, codes = np.split(stored, [4 * groups, 8 * groups])
    return means.view(np.float32), scales.view(np.float32), codes
