"""``nf4-dq``: nf4 whose absmax are themselves quantised to 8 bits, the double quantisation of QLoRA.

    payload = codes as of nf4, then the mean absmax of each group of 256 blocks (float32), then the largest
              difference from it in each group (float32), then a code of the dynamic map for each block

bitsandbytes takes one mean for the whole tensor; a mean for each group makes every slice decode on its own.
"""

from __future__ import annotations

import numpy as np

from tensorbus.codecs.kernels import native
from tensorbus.codecs.kernels.blockwise import native_absmax
from tensorbus.codecs.scratch import scratch

from .blockwise import BlockwiseQuantizer
from .dynamic import DYNAMIC
from .nf4 import NF4_CODE
from .portable import SMALLEST_ABSMAX, Bytes, Floats

BLOCK = 64
GROUP = 256
LARGEST = np.finfo(np.float32).max


class DoubleQuantisedAbsmax:
    """One byte for each block, and 8 bytes for each group of ``GROUP`` blocks."""

    def nbytes(self, blocks: int) -> int:
        return blocks + 8 * _groups(blocks)

    def write(self, absmax: Floats, first: int, blocks: int, out: Bytes) -> None:
        means, scales, codes = _fields(out, first, first + absmax.size, blocks)
        if library := native():
            native_absmax(library).encode(absmax, means, scales, codes)
            return
        for group, start in enumerate(range(0, absmax.size, GROUP)):
            chunk = absmax[start : start + GROUP]
            mean = np.float32(np.mean(chunk, dtype=np.float64))
            centred = chunk - mean
            scale = np.maximum(np.max(np.abs(centred)), SMALLEST_ABSMAX)
            means[group], scales[group] = mean, scale
            DYNAMIC.encode(centred / scale, codes[start : start + chunk.size])

    def read(self, first: int, last: int, blocks: int, stored: Bytes) -> Floats:
        means, scales, codes = _fields(stored, first, last, blocks)
        absmax = scratch("absmax", last - first, np.float32)
        if library := native():
            native_absmax(library).decode(means, scales, codes, absmax)
            return absmax
        np.copyto(absmax, DYNAMIC.decode(codes, absmax.size))
        with np.errstate(over="ignore", invalid="ignore"):
            for group, start in enumerate(range(0, absmax.size, GROUP)):
                chunk = absmax[start : start + GROUP]
                np.multiply(chunk, scales[group], out=chunk)
                np.add(chunk, means[group], out=chunk)
        # Rounding can carry a small absmax below 0, or one near the end of float32 beyond it.
        return np.clip(absmax, 0, LARGEST, out=absmax)

    def cut(self, first: int, last: int, blocks: int, stored: Bytes) -> tuple[Bytes, ...]:
        means, scales, codes = _fields(stored, first, last, blocks)
        return means.view(np.uint8), scales.view(np.uint8), codes


class NF4DQ(BlockwiseQuantizer):
    """4.127 bits a value: 12.90 % of float32, at the error of nf4."""

    name = "nf4-dq"
    kernel = "nf4"
    code = NF4_CODE
    absmax_format = DoubleQuantisedAbsmax()
    blocksizes = (BLOCK,)

    def __init__(self) -> None:
        super().__init__(BLOCK)
        self.blocksize = self.grain = BLOCK * GROUP

    def config(self) -> dict[str, object]:
        return {"name": self.name}


def _groups(blocks: int) -> int:
    return -(-blocks // GROUP)


def _fields(stored: Bytes, first: int, last: int, blocks: int) -> tuple[Floats, Floats, Bytes]:
    """Means and scales of the groups and codes of the blocks ``first``, where one begins, to ``last``."""
    groups = _groups(blocks)
    means, scales, codes = np.split(stored, [4 * groups, 8 * groups])
    here = slice(first // GROUP, _groups(last))
    return means.view(np.float32)[here], scales.view(np.float32)[here], codes[first:last]
