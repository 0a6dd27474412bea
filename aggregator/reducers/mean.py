"""Mean: Σ wᵢ·xᵢ / Σ wᵢ of each tensor, federated averaging (McMahan et al. 2017), online.

float32, float16 and bfloat16 are summed in fp32, the rest in fp64, in the order in which updates come: so the
same updates give the same bits only in the same order. `Exact` does without that.
"""

from __future__ import annotations

from tensorbus.aggregator.accumulator import Accumulator
from tensorbus.aggregator.coverage import Weights
from tensorbus.aggregator.layout import Layout

from .averaging import Averaging
from .base import Workspace


class Mean(Averaging):
    """See the module, and `Averaging`. Its memory is one accumulator.

    Raises:
        UnsupportedDtype: a tensor of the layout cannot be averaged.
    """

    def __init__(self, layout: Layout, workspace: Workspace) -> None:
        super().__init__(layout, workspace, Accumulator(layout.specs, workspace), Weights())
