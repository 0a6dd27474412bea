"""The 8-bit dynamic map: 256 levels between -0.993 and 1, denser towards 0.

A code has a sign, a unary decimal exponent of 0 to -6, and a linear fraction in the bits that are left
(Dettmers, 8-Bit Approximations for Parallelism in Deep Learning, arXiv:1511.04561). Levels and codes are
those of bitsandbytes; the code of a value is that of the *nearest* level, ties to the lower one, whereas
bitsandbytes on CPUs looks it up in 65,536 even steps.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tensorbus.codecs.scratch import scratch

from .portable import Bytes, Floats


def dynamic_map() -> Floats:
    """The 256 levels in rising order, to the bit those of ``bitsandbytes.functional.create_dynamic_map``."""
    levels: list[npt.NDArray[np.float32]] = [np.array([0, 1], np.float32)]
    for exponent in range(-6, 1):
        borders = _linspace(2 ** (exponent + 6) + 1)
        means = (borders[:-1] + borders[1:]) / np.float32(2)
        levels += [np.float32(10.0**exponent) * means, np.float32(-(10.0**exponent)) * means]
    return np.sort(np.concatenate(levels))


def _linspace(count: int) -> Floats:
    """``torch.linspace(0.1, 1, count)`` in float32: from either end, each value rounded once."""
    first = np.float32(0.1)
    step = np.float64((np.float32(1) - first) / np.float32(count - 1))
    index = np.arange(count)
    rising = np.float64(first) + step * index
    return np.where(index < count // 2, rising, 1 - step * (count - 1 - index)).astype(np.float32)


class DynamicCode:
    """One byte for the nearest of the 256 levels."""

    # Strategy. The upper 16 bits of a float32 (sign, exponent, 7 bits of mantissa) cut the numbers into cells
    # so small that at most one midpoint between two levels lies in each. A table over the cells gives the
    # lowest code in the cell and that midpoint (Inf where there is none): one comparison settles the code.

    def __init__(self) -> None:
        levels = dynamic_map()
        midpoints = (levels[:-1] + levels[1:]) / np.float32(2)
        self._lowest, self._midpoint = _cells(midpoints)
        # Two codes are decoded by one look-up, of two float32 that are moved as one uint64.
        pairs = np.empty((256, 256, 2), np.float32)
        pairs[:, :, 0] = levels
        pairs[:, :, 1] = levels[:, None]
        self._pairs = pairs.reshape(-1).view(np.uint64)

    def nbytes(self, count: int) -> int:
        return count

    def encode(self, scaled: Floats, out: Bytes) -> None:
        keys = scratch("keys", scaled.size, np.intp)
        midpoint = scratch("midpoint", scaled.size, np.float32)
        above = scratch("above", scaled.size, np.bool_)
        np.copyto(keys, scaled.view(np.uint16)[1::2])
        np.take(self._midpoint, keys, out=midpoint, mode="clip")
        np.take(self._lowest, keys, out=out, mode="clip")
        np.greater(scaled, midpoint, out=above)
        np.add(out, above.view(np.uint8), out=out)

    def decode(self, codes: Bytes, count: int) -> Floats:
        pairs = (count + 1) // 2
        keys = scratch("keys", pairs, np.intp)
        even = count // 2
        np.copyto(keys[:even], codes[: 2 * even].view(np.uint16))
        if even < pairs:
            keys[even] = codes[-1]
        values = scratch("values", 2 * pairs, np.float32)
        np.take(self._pairs, keys, out=values.view(np.uint64), mode="clip")
        return values[:count]


def _cells(midpoints: Floats) -> tuple[Bytes, Floats]:
    """For each value of the upper 16 bits: the lowest code, and the midpoint in the cell or Inf."""
    keys = np.arange(65536, dtype=np.uint32) << np.uint32(16)
    ends = np.stack([keys.view(np.float32), (keys | np.uint32(0xFFFF)).view(np.float32)])
    codes = np.searchsorted(midpoints, ends, side="left")
    lowest, highest = codes.min(axis=0), codes.max(axis=0)
    inside = np.append(midpoints, np.float32(np.inf))[lowest]
    return lowest.astype(np.uint8), np.where(highest > lowest, inside, np.float32(np.inf)).astype(np.float32)


DYNAMIC = DynamicCode()
