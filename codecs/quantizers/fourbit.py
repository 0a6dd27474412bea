"""Codes of four bits: sixteen levels, two codes in a byte, the first value in the high half."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tensorbus.codecs.scratch import scratch

from .portable import Bytes, Floats

BLOCKSIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


class FourBitCode:
    """The code that stands for the nearest of sixteen levels; ties go to the lower level.

    The rank of a value among the levels is the number of midpoints below it, which fifteen comparisons of
    whole pieces count faster in numpy than any search does. An odd count is padded with the code of 0.
    """

    def __init__(self, levels: Sequence[float]) -> None:
        """``levels``: the value of each code, in the order of the codes, rounded to float32."""
        values = np.array(levels, np.float32)
        order = np.argsort(values, kind="stable")
        ranked = values[order]
        self._midpoints = (ranked[:-1] + ranked[1:]) / np.float32(2)
        self._byte_of_ranks = None if (order == np.arange(16)).all() else _byte_of_ranks(order)
        self._quads = _quads(values)

    def nbytes(self, count: int) -> int:
        return (count + 1) // 2

    def encode(self, scaled: Floats, out: Bytes) -> None:
        count = scaled.size
        ranks = scratch("ranks", count + count % 2, np.uint8)
        above = scratch("above", count, np.bool_)
        np.greater(scaled, self._midpoints[0], out=ranks[:count].view(np.bool_))
        for midpoint in self._midpoints[1:]:
            np.greater(scaled, midpoint, out=above)
            np.add(ranks[:count], above.view(np.uint8), out=ranks[:count])
        ranks[count:] = np.count_nonzero(self._midpoints < 0)
        # Two ranks lie in a uint16 as first + 256 * second.
        pairs = ranks.view(np.uint16)
        if self._byte_of_ranks is not None:
            keys = scratch("keys", pairs.size, np.intp)
            np.copyto(keys, pairs)
            np.take(self._byte_of_ranks, keys, out=out, mode="clip")
        else:
            # The codes are the ranks: times 0x1001, the high byte of the pair is 16 * first + second.
            np.multiply(pairs, np.uint16(0x1001), out=pairs)
            np.right_shift(pairs, 8, out=pairs)
            np.copyto(out, pairs, casting="unsafe")

    def decode(self, codes: Bytes, count: int) -> Floats:
        # One look-up for two bytes, which are four values: a table of 1 MiB.
        pairs = (codes.size + 1) // 2
        keys = scratch("keys", pairs, np.intp)
        even = codes.size // 2
        np.copyto(keys[:even], codes[: 2 * even].view(np.uint16))
        if even < pairs:
            keys[even] = codes[-1]
        values = scratch("values", 4 * pairs, np.float32)
        np.take(self._quads, keys, out=values.view(np.complex128), mode="clip")
        return values[:count]


def _byte_of_ranks(code_of_rank: npt.NDArray[np.intp]) -> Bytes:
    """The two codes, in one byte, of every pair of ranks."""
    ranks = np.arange(16 * 256)
    first, second = code_of_rank[ranks % 256 % 16], code_of_rank[ranks // 256]
    return (16 * first + second).astype(np.uint8)


def _quads(levels: Floats) -> np.ndarray[tuple[int], np.dtype[np.complex128]]:
    """The four values of every pair of bytes; complex128 only stands for "16 bytes in one piece"."""
    of_byte = np.empty((256, 2), np.float32)
    of_byte[:, 0] = np.repeat(levels, 16)
    of_byte[:, 1] = np.tile(levels, 16)
    quads = np.empty((256, 256, 2, 2), np.float32)
    quads[:, :, 0] = of_byte
    quads[:, :, 1] = of_byte[:, None]
    return quads.reshape(-1).view(np.complex128)
