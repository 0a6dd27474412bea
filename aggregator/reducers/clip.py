"""``clip``: no update changes the model by more than a given norm (McMahan et al. 2018, arXiv:1710.06963).

The norm is the L2 norm of the change from the model that the site was given, over all float tensors together.
A larger change is scaled down to it as a whole; integers and bools are scaled with it, but do not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from tensorbus.aggregator.updates import Contribution, FoldingInterrupted, Update, UpdateRefused
from tensorbus.codecs.base import Accumulator
from tensorbus.codecs.item import Item
from tensorbus.errors import ManifestMismatch, NonFiniteValues, TensorbusError

from .base import FindBase, Reducer, Told, check_base
from .lockstep import Lockstep
from .rows import Member, Rows
from .steps import Transform, check_number
from .stream import SliceThread


@dataclass(frozen=True, slots=True)
class Clip(Transform):
    """Scales down what is too large.

    Attributes:
        norm: the largest that stays as it is; more than 0.
    """

    norm: float

    name: ClassVar[str] = "clip"
    primary: ClassVar[str | None] = "norm"

    def __post_init__(self) -> None:
        check_number(self.name, "norm", self.norm, 0, float("inf"), open_low=True)

    def wrap(self, combiner: Reducer) -> Reducer:
        return Clipping(combiner, self.norm)


class Clipping(Reducer):
    """Reads each update once for its norm, and the model that it was trained from if it came whole."""

    def __init__(self, combiner: Reducer, norm: float) -> None:
        super().__init__(combiner.layout, combiner.workspace)
        self._combiner = combiner
        self._norm = norm
        self._thread = SliceThread()
        self._find_base: FindBase = _no_model
        self._floats = [spec.name for spec in combiner.layout.specs if spec.dtype.kind == "float"]

    @property
    def dirty(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]  read only: it is the combiner's
        """As the combiner says."""
        return self._combiner.dirty

    @property
    def least(self) -> int:
        return self._combiner.least

    async def begin(self, number: int, find_base: FindBase) -> None:
        self._find_base = find_base
        await self._combiner.begin(number, find_base)

    async def reset(self) -> None:
        await self._combiner.reset()

    async def add(self, update: Update, contribution: Contribution, told: Told) -> None:
        if contribution.partial:
            raise ManifestMismatch(
                f"update {contribution.message} holds sums of many; they can no longer be clipped one by one"
            )
        norm = await self.norm(update, contribution)
        scale = contribution.scale * min(1.0, self._norm / norm) if norm > 0 else contribution.scale
        await self._combiner.add(update, replace(contribution, scale=scale), told)

    async def norm(self, update: Update, contribution: Contribution) -> float:
        """The L2 norm of an update's change, in float64. Raises as ``add``."""
        targets = self.layout.match(update.manifest)
        check_base(update, contribution)
        member = Member(update, replace(contribution, current=False, scale=1.0), targets)
        squares = _Squares()
        there = set(targets.values())
        names = [name for name in self._floats if name in there]
        lockstep = Lockstep(
            self.layout, [member], update, self._find_base, self._thread, changes=True, names=names
        )
        try:
            await lockstep.run(squares.add)
        except UpdateRefused as refused:
            raise (refused.__cause__ if isinstance(refused.__cause__, TensorbusError) else refused) from None
        if not np.isfinite(squares.total):
            raise NonFiniteValues(f"the change of update {contribution.message} is too large to be measured")
        return float(np.sqrt(squares.total))

    async def close(self, current: Update, find_base: FindBase) -> Sequence[Item]:
        return await self._combiner.close(current, find_base)

    def partial(self) -> Sequence[Item]:
        return self._combiner.partial()

    def values(self, name: str) -> Accumulator | None:
        return self._combiner.values(name)

    async def commit(self, number: int) -> None:
        await self._combiner.commit(number)

    async def aclose(self) -> None:
        await self._thread.aclose()
        await self._combiner.aclose()


class _Squares:
    """The sum of the squares of all rows."""

    def __init__(self) -> None:
        self.total = 0.0

    def add(self, rows: Rows) -> None:
        for row in rows.values if not rows.same else ():
            with np.errstate(over="ignore"):
                exact = row.astype(np.float64)
                np.multiply(exact, exact, out=exact)
                self.total += float(np.add.reduce(exact))


async def _no_model(base: str) -> Update:
    raise FoldingInterrupted(f"the model {base} was asked for before a round began")
