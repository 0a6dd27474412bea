"""Joint: what reducers have in common that look at all updates of a round at once.

Strategy. An update is checked as soon as it is sealed: every slice is decoded, and nothing is kept of it. In
the end all updates are read side by side (see `Lockstep`), and each piece of the result goes to where the
next model is made. They are taken in the order of their sites, so the result never depends on the order in
which they came. What an update claims to weigh is ignored: a robust reducer must not believe it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial

import numpy as np

from tensorbus.aggregator.accumulator import Accumulator
from tensorbus.aggregator.layout import Layout
from tensorbus.aggregator.result_items import Named
from tensorbus.aggregator.updates import Contribution, NotEnoughUpdates, Update
from tensorbus.codecs.base import Accumulator as Values
from tensorbus.codecs.item import Item, ItemSpec
from tensorbus.errors import ManifestMismatch
from tensorbus.streaming.buffers import SliceBuffer
from tensorbus.streaming.decoder import SliceEvent

from .base import FindBase, Reducer, Told, Workspace, check_base
from .decoded import Decoded
from .lockstep import Lockstep
from .majority import Votes, elected
from .rows import Member, Rows
from .stream import SliceThread


class Joint(Reducer):
    """Keeps the updates' names, and a model's worth of room while the round is closed.

    Raises:
        UnsupportedDtype: the layout has a tensor that cannot be combined.
    """

    def __init__(self, layout: Layout, workspace: Workspace) -> None:
        super().__init__(layout, workspace)
        self.thread = SliceThread()
        self._members: list[tuple[Member, Votes]] = []
        self._decoded = Decoded()
        self._results = Accumulator(layout.specs, workspace)
        self._lacking: set[str] = set()

    @abstractmethod
    def combine(self, values: Values, out: Values) -> None:
        """Make one row of ``values``, at least one, of which each is an update; they may be overwritten."""

    async def choose(
        self, members: Sequence[Member], current: Update, find_base: FindBase
    ) -> Sequence[Member]:
        """Those that are combined, in the same order. Raises as ``Lockstep.run``."""
        return members

    async def reset(self) -> None:
        self._members.clear()

    async def add(self, update: Update, contribution: Contribution, told: Told) -> None:
        if contribution.partial:
            raise ManifestMismatch(
                f"update {contribution.message} holds sums of many; this reducer needs each update by itself"
            )
        targets = self.layout.match(update.manifest)
        check_base(update, contribution)
        votes = Votes()
        await self.thread.read(update.slices(), partial(self._check, votes), told)
        self._members.append((Member(update, contribution, targets), votes))

    def _check(self, votes: Votes, event: SliceEvent) -> None:
        if event.spec.kind != "tensor":
            votes.add(event)
            return
        self._decoded.hold_update(event)
        try:
            self._decoded.require_finite()
        finally:
            self._decoded.release()

    async def close(self, current: Update, find_base: FindBase) -> Sequence[Item]:
        if len(self._members) < self.least:
            raise NotEnoughUpdates(
                f"{len(self._members)} updates are too few for this reducer, which needs {self.least}"
            )
        taken = sorted(self._members, key=lambda each: each[0].key)
        members = await self.choose([member for member, _ in taken], current, find_base)
        await self.thread.call(self._results.reset)
        await self._keep(members, current)
        there = [spec.name for spec in self.layout.specs if spec.name not in self._lacking]
        lockstep = Lockstep(self.layout, members, current, find_base, self.thread, names=there)
        await lockstep.run(self._take)
        chosen = {member.update.id for member in members}
        voters = [(member.update, votes) for member, votes in taken if member.update.id in chosen]
        extras = await elected(self.layout, voters, current)
        buffer = SliceBuffer()
        return [extras.get(spec.name) or self._item(spec, buffer) for spec in self.layout.specs]

    def values(self, name: str) -> Values | None:
        return None if name in self._lacking else self._results.array(name)

    async def aclose(self) -> None:
        self._members.clear()
        await self.thread.call(self._results.close)
        await self.thread.aclose()

    async def _keep(self, members: Sequence[Member], current: Update) -> None:
        """Copy the tensors that no member has."""
        there = {name for member in members for name in member.targets.values()}
        tensors = [spec for spec in self.layout.specs if spec.kind == "tensor" and spec.view is None]
        self._lacking = {spec.name for spec in tensors if spec.name not in there}
        targets = self.layout.match(current.manifest)

        def take(event: SliceEvent) -> None:
            if (name := targets.get(event.spec.name)) in self._lacking:
                self._results.keep(name, event)

        if self._lacking:
            await self.thread.read(current.slices(), take)

    def _take(self, rows: Rows) -> None:
        out = self._results.array(rows.spec.name)[rows.start : rows.stop]
        if rows.same:
            assert rows.current is not None
            np.copyto(out, rows.current)
        else:
            self.combine(rows.values, out)

    def _item(self, spec: ItemSpec, buffer: SliceBuffer) -> Item:
        return Named(spec) if spec.view is not None else self._results.item(spec, buffer)
