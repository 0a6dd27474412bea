"""``mean``: the weighted mean, online, or exact where a job is to be deterministic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .base import Reducer, Workspace
from .steps import Combiner

if TYPE_CHECKING:
    from tensorbus.aggregator.layout import Layout


@dataclass(frozen=True, slots=True)
class Average(Combiner):
    """Σ wᵢ·xᵢ / Σ wᵢ of each tensor (McMahan et al. 2017)."""

    name: ClassVar[str] = "mean"

    def build(self, layout: Layout, workspace: Workspace) -> Reducer:
        # Each brings kernels of its own: only what is used is imported.
        if workspace.deterministic:
            from .exact import Exact

            return Exact(layout, workspace)
        from .mean import Mean

        return Mean(layout, workspace)
