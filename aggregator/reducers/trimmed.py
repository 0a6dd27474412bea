"""``trimmed``: the coordinate-wise trimmed mean (Yin et al. 2018, arXiv:1803.01498)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from tensorbus.codecs.base import Accumulator
from tensorbus.codecs.scratch import scratch

from .base import Reducer, Workspace
from .joint import Joint
from .sorting import sort_rows
from .steps import Combiner, check_number

if TYPE_CHECKING:
    from tensorbus.aggregator.layout import Layout


@dataclass(frozen=True, slots=True)
class Trimmed(Combiner):
    """Of each number the mean over the updates without the largest and the smallest.

    Attributes:
        share: of the updates that is left out at either end, rounded down to whole ones; below a half.
    """

    share: float = 0.1

    name: ClassVar[str] = "trimmed"
    primary: ClassVar[str | None] = "share"

    def __post_init__(self) -> None:
        check_number(self.name, "share", self.share, 0, 0.5)

    def build(self, layout: Layout, workspace: Workspace) -> Reducer:
        return TrimmedReducer(layout, workspace, self.share)


class TrimmedReducer(Joint):
    """All updates count alike."""

    def __init__(self, layout: Layout, workspace: Workspace, share: float) -> None:
        super().__init__(layout, workspace)
        self._share = share

    def combine(self, values: Accumulator, out: Accumulator) -> None:
        count = len(values)
        # 0.1 of 30 are 3, although the float 0.1 times 30 may be a little less than that.
        cut = min(int(self._share * count + 1e-9), (count - 1) // 2)
        mean_rows(sort_rows(values, range(cut, count - cut)) if cut else list(values), out)


def mean_rows(rows: Sequence[Accumulator], out: Accumulator) -> None:
    """The mean of at most ``PIECE`` columns, rounded once; that of equal values is their value, bit for bit.

    Summed in float64. Float64 itself is summed as differences from the first row.
    """
    total = scratch("row-sums", out.size, np.float64)
    if out.dtype == np.float64:
        total.fill(0)
        difference = scratch("row-difference", out.size, np.float64)
        for row in rows[1:]:
            np.subtract(row, rows[0], out=difference)
            np.add(total, difference, out=total)
        np.divide(total, len(rows), out=total)
        np.add(rows[0], total, out=out)
        return
    np.copyto(total, rows[0])
    for row in rows[1:]:
        np.add(total, row, out=total)
    np.divide(total, len(rows), out=total)
    np.copyto(out, total, casting="same_kind")
