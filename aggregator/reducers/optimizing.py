"""Optimizing: a server optimiser behind a combiner (Reddi et al. 2021, arXiv:2003.00295).

Strategy. What the combiner makes is not the next model, but says where to go: its difference Δ from the
round's model is a pseudo-gradient. When the combiner has closed the round, the round's model is read once
more, slice by slice; with what is remembered of earlier rounds, on disk, each piece of the combiner's result
is replaced by that of the next model where it lies. So this takes no memory, but 4 or 8 bytes of disk a
number, and twice that while a model is being published.

Only float tensors are optimised. A tensor that no update of the round has stays as it is, and so does what is
remembered of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tensorbus.aggregator.result_items import precision
from tensorbus.aggregator.updates import Contribution, Update
from tensorbus.codecs.base import Accumulator
from tensorbus.codecs.item import Item, ItemSpec
from tensorbus.codecs.scratch import pieces, scratch
from tensorbus.codecs.values import all_finite
from tensorbus.errors import JobError

from .base import FindBase, Reducer, Told
from .lockstep import Lockstep
from .rows import Rows
from .server_state import Moments, StateReader, StateWriter, sweep
from .stream import SliceThread

if TYPE_CHECKING:
    from .optimizers import Rule


class Optimizing(Reducer):
    """The combiner, and the rule behind it."""

    def __init__(self, combiner: Reducer, rule: Rule) -> None:
        super().__init__(combiner.layout, combiner.workspace)
        self._combiner = combiner
        self._rule = rule
        self._moments = Moments.of(rule.name, rule.moments, combiner.layout)
        self._thread = SliceThread()
        self._number: int | None = None
        self._stepping = False

    @property
    def dirty(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]  read only: it is the combiner's
        """As the combiner says, and while its result is being replaced."""
        return self._combiner.dirty or self._stepping

    @property
    def least(self) -> int:
        return self._combiner.least

    @property
    def takes_partials(self) -> bool:
        return self._combiner.takes_partials

    async def begin(self, number: int, find_base: FindBase) -> None:
        await self._combiner.begin(number, find_base)
        # Looked at now, and not when the updates are in.
        state = await self._thread.call(partial(self._open, number))
        if state is not None:
            await self._thread.call(state.close)
        self._number = number

    async def reset(self) -> None:
        self._stepping = False
        await self._combiner.reset()

    async def add(self, update: Update, contribution: Contribution, told: Told) -> None:
        await self._combiner.add(update, contribution, told)

    async def close(self, current: Update, find_base: FindBase) -> Sequence[Item]:
        if self._number is None:
            raise JobError(f"{self._rule.name} was to close a round before it was told which")
        items = await self._combiner.close(current, find_base)
        self._stepping = True
        values = await self._thread.call(self._values)
        pass_ = await self._thread.call(partial(self._pass, self._number, values))
        try:
            moving = [spec.name for spec in self._moments.specs if values[spec.name] is not None]
            lockstep = Lockstep(self.layout, [], current, find_base, self._thread, names=moving)
            await lockstep.run(pass_.step)
            await self._thread.call(pass_.finish)
        finally:
            await self._thread.call(pass_.close)
        self._stepping = False
        return items

    def values(self, name: str) -> Accumulator | None:
        return self._combiner.values(name)

    async def commit(self, number: int) -> None:
        await self._combiner.commit(number)
        await self._thread.call(lambda: sweep(self._folder(), number))

    async def aclose(self) -> None:
        await self._thread.aclose()
        await self._combiner.aclose()

    # --- in the thread -------------------------------------------------------------------------------

    def _folder(self) -> Path:
        return self.workspace.folder()

    def _open(self, number: int) -> StateReader | None:
        """The state that the round begins with; None for one that begins without."""
        if number == self._rule.start:
            return None
        return StateReader(self._folder(), number, self._moments)

    def _pass(self, number: int, values: Mapping[str, Accumulator | None]) -> _Pass:
        before = self._open(number)
        try:
            after = StateWriter(self._folder(), number + 1, self._moments)
        except BaseException:
            if before is not None:
                before.close()
            raise
        return _Pass(self._rule, self._moments, values, before, after)

    def _values(self) -> dict[str, Accumulator | None]:
        return {spec.name: self._combiner.values(spec.name) for spec in self._moments.specs}


class _Pass:
    """One step of all tensors."""

    def __init__(
        self,
        rule: Rule,
        moments: Moments,
        values: Mapping[str, Accumulator | None],
        before: StateReader | None,
        after: StateWriter,
    ) -> None:
        self._rule = rule
        self._moments = moments
        self._values = values
        self._before = before
        self._after = after

    def step(self, rows: Rows) -> None:
        """Replace a piece of the combined values by the next model's."""
        values = self._values[rows.spec.name]
        assert values is not None and rows.current is not None
        combined = values[rows.start : rows.stop]
        state = self._state(rows.spec, rows.start, rows.stop)
        change = _scratch("pseudo-gradient", rows.spec, combined.size)
        with np.errstate(over="ignore", invalid="ignore"):
            np.subtract(combined, rows.current, out=change)
            if not all_finite(change):
                np.copyto(change, 0, where=combined == rows.current)  # infinities that stay as they are
            self._rule.step(change, state)
            np.copyto(combined, rows.current)
            # Adding a zero would change the sign of another.
            np.add(combined, change, out=combined, where=change != 0)
        if not all_finite(combined) and not np.isfinite(combined[np.isfinite(rows.current)]).all():
            raise JobError(
                f"{self._rule.name} makes values of {rows.spec.name!r} NaN or Inf: the federation diverges; "
                "use a smaller learning rate"
            )
        self._after.write(rows.spec, rows.start, state)

    def finish(self) -> None:
        """Carry over what is remembered of tensors that did not move, and seal the new state."""
        for spec in self._moments.specs:
            if self._values[spec.name] is None:
                for start, stop in pieces(spec.count):
                    self._after.write(spec, start, self._state(spec, start, stop))
        self._after.finish()

    def close(self) -> None:
        """Close the files."""
        self._after.abort()
        if self._before is not None:
            self._before.close()

    def _state(self, spec: ItemSpec, start: int, stop: int) -> list[Accumulator]:
        """The moments of these elements before the step, to be overwritten."""
        state = [_scratch(f"moment-{at}", spec, stop - start) for at in range(self._rule.moments)]
        if self._before is not None:
            self._before.read(spec, start, state)
        else:
            for row, initial in zip(state, self._rule.initial, strict=True):
                row.fill(initial)
        return state


def _scratch(use: str, spec: ItemSpec, count: int) -> Accumulator:
    """Memory of the dtype that a tensor's moments are kept in."""
    if precision(spec).name == "float64":
        return scratch(f"{use}-64", count, np.float64)
    return scratch(f"{use}-32", count, np.float32)
