"""Session: the rounds of a job, one after another, for as long as nothing comes between.

What it is made of, and why a session can begin anew at any instant: `worker`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

from tensorbus.bus.client import Client

from .bus_update import BusUpdate
from .collecting import REFUSED, Collector
from .control import paused_for
from .events import Emitter
from .inbox import Inbox
from .job import JobSpec
from .models import GlobalModel, finder, last_models
from .origin import ClosedRound, Origin
from .records import Ledger, Records, Roster
from .reducers.base import Reducer
from .rounds import Round
from .switch import Switch
from .updates import FoldingInterrupted, NotEnoughUpdates


@dataclass(frozen=True, slots=True)
class Session:
    """Runs the rounds of one job.

    Attributes:
        records, ledger: what was decided before, and where decisions are put.
        origin: where models come from, and results go.
        switch: what people want of the job. inbox: what its sites have sent.
        reducer: for the layout of the job's model.
    """

    bus: Client
    spec: JobSpec
    emit: Emitter
    records: Records
    origin: Origin
    ledger: Ledger
    switch: Switch
    inbox: Inbox
    reducer: Reducer

    async def round(self, model: GlobalModel) -> GlobalModel:
        """Collect the updates of the round that ``model`` begins; the model that follows, sealed.

        Raises:
            As `Collector.collect`, `Origin.make` and `Origin.follow`.
        """
        reducer = self.reducer
        models = {model.round: model}
        if self.spec.staleness:
            models |= await last_models(self.bus, self.spec.job, self.spec.staleness + 1)
        find_base = finder(self.bus, models)
        await reducer.begin(model.round, find_base)
        await reducer.reset()
        opened = await self._open(model, min(models))
        collector = Collector(self.bus, opened, models, reducer, self.emit, self.switch, time.monotonic)
        current = BusUpdate(await self.bus.fetch(model.info.id))
        closed = ClosedRound(model, opened, reducer, current, find_base)
        attempt = 0
        if (roster := self.ledger.rosters.get(model.round)) is not None:
            attempt = roster.attempt
            await collector.replay(roster)
        while True:
            if not opened.closed:
                attempt += 1
                accepted = await collector.collect(self.inbox)
                await self._decide(Roster.of(opened.number, attempt, accepted, opened.left))
            self._tell_closing(opened)
            try:
                made = await self.origin.make(closed)
                break
            except NotEnoughUpdates as error:
                collector.wait_for_more(error)
            except REFUSED as error:
                await collector.reopen(error, partial(self.origin.make, closed))
        await self.switch.going(self.emit, opened.number)
        following_model = await self.origin.follow(closed, made)
        await reducer.commit(following_model.round)
        self.emit("settled", round=opened.number, updates=await collector.settle())
        return following_model

    async def _open(self, model: GlobalModel, oldest: int) -> Round:
        """The round as it stands: it may have begun before this process did, and be paused."""
        ledger, number, wall, now = self.ledger, model.round, time.time(), time.monotonic()
        began = min(wall, await self.records.open(number, wall))
        paused, since = paused_for(ledger.orders, began, wall)
        ledger.orders.clear()  # from here on the switch tells
        before, least = ledger.before(number), self.reducer.least
        opened = Round(self.spec, number, now - (wall - began) + paused, before, oldest, least)
        if since is not None:
            opened.pause(now - max(0.0, wall - since))
        self.emit(
            "round",
            round=number,
            rounds=self.origin.rounds(model),
            sites=self.spec.full,
            expected=opened.expected,
            quorum=opened.enough,
            deadline=self.spec.deadline,
            mode=self.spec.mode,
        )
        if opened.paused and number not in ledger.rosters:  # else it is told when its result is held back
            self.emit("paused", round=number)
        return opened

    async def _decide(self, roster: Roster) -> None:
        """Have it on record of what the model is made, before it is made."""
        decided = await self.records.close(roster)
        if decided.entries != roster.entries:
            raise FoldingInterrupted(
                f"another aggregator has closed round {roster.number} with other updates"
            )

    def _tell_closing(self, opened: Round) -> None:
        behind = opened.behind
        self.emit(
            "closing",
            round=opened.number,
            sites=list(dict.fromkeys(site for site, _ in opened.accepted)),
            updates=len(opened.accepted),
            num_examples=opened.examples,
            weight=opened.weight,
            stale=sum(rounds > 0 for rounds in behind),
            behind=sum(behind) / len(behind),
            declined=sorted(opened.declined),
            left=sorted(opened.left),
            metrics=opened.metrics(),
        )
