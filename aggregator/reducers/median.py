"""``median``: the coordinate-wise median (Yin et al. 2018, arXiv:1803.01498)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from tensorbus.codecs.base import Accumulator

from .base import Reducer, Workspace
from .joint import Joint
from .sorting import sort_rows
from .steps import Combiner
from .trimmed import mean_rows

if TYPE_CHECKING:
    from tensorbus.aggregator.layout import Layout


@dataclass(frozen=True, slots=True)
class Median(Combiner):
    """Of each number the median over the updates; of an even number of updates the mean of the middle two."""

    name: ClassVar[str] = "median"

    def build(self, layout: Layout, workspace: Workspace) -> Reducer:
        return MedianReducer(layout, workspace)


class MedianReducer(Joint):
    """All updates count alike."""

    def combine(self, values: Accumulator, out: Accumulator) -> None:
        count = len(values)
        middle = sort_rows(values, range((count - 1) // 2, count // 2 + 1))
        if len(middle) == 1:
            np.copyto(out, middle[0])
            return
        mean_rows(middle, out)
