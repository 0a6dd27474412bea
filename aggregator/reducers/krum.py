"""``krum`` and ``multi-krum``: the updates that lie closest to others (Blanchard et al. 2017, NeurIPS 30)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from tensorbus.aggregator.updates import Update
from tensorbus.codecs.base import Accumulator

from .base import FindBase, Reducer, Workspace
from .joint import Joint
from .lockstep import Lockstep
from .rows import Member, Rows
from .steps import Combiner, check_count
from .trimmed import mean_rows

if TYPE_CHECKING:
    from tensorbus.aggregator.layout import Layout

MAX_UPDATES = 4096
"""Of which the distances of all pairs are kept."""


@dataclass(frozen=True, slots=True)
class Krum(Combiner):
    """The one update with the smallest sum of squared distances to its n − f − 2 nearest neighbours.

    Attributes:
        f: how many updates may be bad; a round needs 2·f + 3 updates at least.
    """

    f: int = 1

    name: ClassVar[str] = "krum"
    primary: ClassVar[str | None] = "f"

    def __post_init__(self) -> None:
        check_count(self.name, "f", self.f, 0, (MAX_UPDATES - 3) // 2)

    @property
    def least(self) -> int:
        return 2 * self.f + 3

    def build(self, layout: Layout, workspace: Workspace) -> Reducer:
        return KrumReducer(layout, workspace, self.f, 1)


@dataclass(frozen=True, slots=True)
class MultiKrum(Combiner):
    """The mean of the m best updates by the same measure, each counting alike.

    Attributes:
        f: how many updates may be bad; a round needs 2·f + 3 updates at least.
        m: how many are taken; None for all but f.
    """

    f: int = 1
    m: int | None = None

    name: ClassVar[str] = "multi-krum"
    primary: ClassVar[str | None] = "f"

    def __post_init__(self) -> None:
        check_count(self.name, "f", self.f, 0, (MAX_UPDATES - 3) // 2)
        if self.m is not None:
            check_count(self.name, "m", self.m, 1, MAX_UPDATES)

    @property
    def least(self) -> int:
        return max(2 * self.f + 3, self.f + (self.m or 0))

    def build(self, layout: Layout, workspace: Workspace) -> Reducer:
        return KrumReducer(layout, workspace, self.f, self.m)


class KrumReducer(Joint):
    """Reads the updates twice: for their distances, and to combine those that were chosen.

    The distance is that of the changes of float tensors, all of them together; one that an update does not
    hold it did not change. Of updates with equal scores, the first by round and site is taken.
    """

    def __init__(self, layout: Layout, workspace: Workspace, f: int, m: int | None) -> None:
        super().__init__(layout, workspace)
        self._f = f
        self._m = m

    @property
    def least(self) -> int:
        return max(2 * self._f + 3, self._f + (self._m or 0))

    async def choose(
        self, members: Sequence[Member], current: Update, find_base: FindBase
    ) -> Sequence[Member]:
        products = np.zeros((len(members), len(members)))
        floats = [spec.name for spec in self.layout.specs if spec.dtype.kind == "float"]
        lockstep = Lockstep(self.layout, members, current, find_base, self.thread, changes=True, names=floats)
        await lockstep.run(lambda rows: _add_products(rows, products))
        best = chosen(scores(products, self._f), self._m or len(members) - self._f)
        return [members[place] for place in best]

    def combine(self, values: Accumulator, out: Accumulator) -> None:
        mean_rows(list(values), out)


def _add_products(rows: Rows, products: npt.NDArray[np.float64]) -> None:
    """Add the products of all pairs of rows.

    Rows are changes from a model near the honest updates, so that their distances do not drown in what is
    large; and each product is of two rows only, so that no bad update can spoil those of others.
    """
    if rows.same or not len(rows.members):
        return
    exact = np.asarray(rows.values, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        products[np.ix_(rows.members, rows.members)] += exact @ exact.T


def scores(products: npt.NDArray[np.float64], f: int) -> npt.NDArray[np.float64]:
    """For each update, the sum of the squared distances to its n − f − 2 nearest neighbours.

    Args:
        products: of all pairs, n×n.
        f: how many may be bad; n is 2·f + 3 at least.
    """
    norms = np.diagonal(products)
    with np.errstate(over="ignore", invalid="ignore"):
        distances = norms[:, None] + norms[None, :] - 2 * products
    distances = np.where(np.isnan(distances), np.inf, np.maximum(distances, 0))
    np.fill_diagonal(distances, np.inf)  # nobody is his own neighbour
    nearest = np.sort(distances, axis=1)[:, : len(products) - f - 2]
    return nearest.sum(axis=1)


def chosen(scores: npt.NDArray[np.float64], m: int) -> list[int]:
    """The places of the ``m`` lowest scores, ascending; of equal ones the first."""
    return sorted(int(place) for place in np.argsort(scores, kind="stable")[:m])
