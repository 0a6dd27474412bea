"""Sorting networks: many columns are sorted at once, by comparing whole rows.

Batcher's odd-even merge sort (1968), of which only the comparisons are kept that the rows asked for depend
on. A comparison is a minimum and a maximum of two rows that lie in the cache, which is many times faster than
sorting each column on its own, and takes the same time whatever the values are.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from tensorbus.codecs.base import Accumulator

Comparison = tuple[int, int, bool, bool]
"""Two rows, and whether the smaller goes to the first and the larger to the second, or only one of both."""


def sort_rows(values: Accumulator, wanted: range) -> list[Accumulator]:
    """The rows ``wanted`` of ``values`` when each column is sorted ascending; ``values`` is overwritten.

    Each column of these rows holds the right values, but in any order.
    """
    rows: list[Accumulator] = list(values)
    spare = np.empty_like(rows[0])
    for low, high, keep_low, keep_high in network(len(rows), wanted):
        first, second = rows[low], rows[high]
        if keep_low and keep_high:
            np.minimum(first, second, out=spare)
            np.maximum(first, second, out=second)
            rows[low], spare = spare, first
        elif keep_low:
            np.minimum(first, second, out=first)
        else:
            np.maximum(first, second, out=second)
    return [rows[at] for at in wanted]


@lru_cache(maxsize=256)
def network(count: int, wanted: range) -> tuple[Comparison, ...]:
    """The comparisons after which the rows ``wanted`` of ``count`` hold what they do when all are sorted."""
    needed, used = set(wanted), set[int]()
    kept: list[Comparison] = []
    for low, high in reversed(list(_batcher(count))):
        # Two rows that are both wanted, and that nothing else depends on, may stay in any order.
        settled = low in wanted and high in wanted and low not in used and high not in used
        if (low in needed or high in needed) and not settled:
            kept.append((low, high, low in needed, high in needed))
            needed |= {low, high}
            used |= {low, high}
    return tuple(reversed(kept))


def _batcher(count: int) -> Iterator[tuple[int, int]]:
    """The comparisons that sort any ``count`` rows (Knuth, The Art of Computer Programming 3, 5.2.2, M)."""
    size = 1
    while size < count:
        step = size
        while step >= 1:
            for start in range(step % size, count - step, 2 * step):
                for at in range(start, min(start + step, count - step)):
                    if at // (2 * size) == (at + step) // (2 * size):
                        yield at, at + step
            step //= 2
        size *= 2
