"""Aggregator: the process that turns updates into models, round after round.

Strategy: what lies at the broker is the only state. The newest global model says which round is open and, in
its manifest, what a model consists of; the records say when the round began, and, once it is closed, of which
updates its result is made; the rest is rebuilt from the updates, which stay unacknowledged until the next
model is sealed. Starting, going on after ``kill -9`` and coming back after a lost broker are therefore one
and the same code: a *session*. It makes its consumers anew, so that the broker hands over every stored update
at once and in the order in which they were sealed; those that went into a model are recognised by the
records. Idempotency keys see to it that each model and each decision exists once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from tensorbus.bus.client import Client
from tensorbus.bus.consumers import MAX_ACK_PENDING
from tensorbus.errors import (
    BrokerUnavailable,
    Conflict,
    InvalidSpecification,
    JobCancelled,
    NotFound,
    TransferStalled,
)

from .bus_update import BusUpdate
from .claim import Claim
from .collecting import REFUSED, Collector
from .control import Switch, following, orders_of, paused_for
from .events import Emitter, Event
from .inbox import Inbox
from .job import JobSpec, rounds_consumer, seed_consumer, state_name, updates_consumer
from .layout import Layout
from .models import GlobalModel, finder, last_models
from .origin import ClosedRound, Origin
from .records import Ledger, Records, Roster
from .reducers.base import Reducer, Workspace
from .reducers.spec import ReducerSpec
from .root import Root
from .rounds import Round
from .state_folder import StateFolder
from .updates import FoldingInterrupted, NotEnoughUpdates

log = logging.getLogger("tensorbus.aggregator")

INTERRUPTIONS = (BrokerUnavailable, TransferStalled, FoldingInterrupted, Conflict)
"""After which a session begins anew; a Conflict is about a consumer that somebody else has made."""
PAUSE = 1.0
"""Seconds between two sessions; the client has been patient already."""
PREFETCH = 64
"""Small updates that one request may bring."""


class Aggregator:
    """Runs one job from its first round, or from wherever it was, to its final model.

    Args:
        spec: the job. It is told to the sites with every model; a restart may change it for what follows.
        init: safetensors file of the first model; None to wait for a message on the job's seed topic.
        listener: called with every Event.
        reducer: makes the job's reducer for the layout of its model; None is what ``spec`` says.
        state: folder for what outlives a restart: residuals of the models, the state of a server optimiser,
            and the first model where that is the base of the others and came as a seed. None is
            ``TENSORBUS_STATE``.
        accumulator: "memory", or "file" to sum in a memory-mapped file in the state folder.
        origin: where models come from and results go; None is a job that stands for itself.

    Models that are sent as changes have the client's only base as theirs; if it has none, the first model.

    Raises:
        InvalidSpecification: the job cannot work, such as a quorum that its reducer cannot do with.
    """

    def __init__(
        self,
        bus: Client,
        spec: JobSpec,
        *,
        init: Path | None,
        listener: Callable[[Event], None],
        reducer: Callable[[Layout, Workspace], Reducer] | None = None,
        state: str | Path | None = None,
        accumulator: str = "memory",
        origin: Callable[[Emitter, StateFolder], Origin] | None = None,
    ) -> None:
        self._bus = bus
        self._spec = spec
        self._emit = Emitter(listener)
        self._state = StateFolder(None if state is None else Path(state), state_name(spec.job))
        self._workspace = Workspace(self._state.path, accumulator, spec.deterministic)
        self._make_reducer = reducer or _reducer_of(spec)
        self._origin = (
            Root(bus, spec, init, self._emit, self._state)
            if origin is None
            else origin(self._emit, self._state)
        )
        self._records = Records(bus, spec.job)
        self._claim = Claim(bus, spec.job)
        self._layout: Layout | None = None
        self._reducer: Reducer | None = None

    async def run(self) -> GlobalModel:
        """Run the job to its end; the final model.

        Raises:
            BrokerUnavailable: the broker was never there. One that goes away later is waited for.
            JobCancelled: somebody has cancelled the job; what has to be cleaned up is cleaned up.
            JobError: another aggregator has taken the job over.
            UnsupportedDtype, InvalidSpecification: the model, or what is stored of the job, cannot be used.
            MissingBase: the models are sent as changes, and the base that they are from is not at hand.
            StoreDamaged: what the job keeps on disk is damaged.
        """
        await self._bus.topics()
        await self._origin.prepare()
        try:
            while True:
                try:
                    return await self._session()
                except INTERRUPTIONS as error:
                    log.warning("interrupted: %s", error)
                    self._emit("interrupted", reason=str(error))
                    await asyncio.sleep(PAUSE)
        finally:
            await self._origin.aclose()
            if self._reducer is not None:
                await self._reducer.aclose()

    async def _session(self) -> GlobalModel:
        await self._claim.hold()
        await self._forget_consumers()
        try:
            async with orders_of(self._bus, self._spec.job) as orders:
                ledger = await self._records.read()
                switch = Switch(ledger.orders)
                async with following(switch, orders, self._claim):
                    switch.check()
                    model = await self._rounds(await self._origin.start(switch), ledger, switch)
        except JobCancelled as cancelled:
            await self._origin.cancel()
            await self._end()
            self._emit("cancelled", reason=str(cancelled))
            raise
        await self._origin.clean_up(model)
        await self._end()
        self._emit("done", round=model.round, message=model.info.id)
        return model

    async def _end(self) -> None:
        await self._forget_consumers()
        await self._records.clean_up(None)
        await self._claim.drop()
        await self._origin.finish()

    # --- rounds --------------------------------------------------------------------------------------

    async def _rounds(self, model: GlobalModel, ledger: Ledger, switch: Switch) -> GlobalModel:
        """All rounds from that of ``model`` on; the final model."""
        if model.final:
            return model
        reducer = await self._reducer_for(model)
        await reducer.commit(
            model.round
        )  # the process before this one may have been killed just before it did
        held = max(self._spec.sites, self._spec.full) * (2 + self._spec.staleness) + 16
        async with (
            self._bus.subscribe(
                self._spec.answers_filter,
                consumer=updates_consumer(self._spec.job),
                max_in_flight=min(held, MAX_ACK_PENDING) if self._spec.select == 1 else MAX_ACK_PENDING,
                prefetch=PREFETCH,
            ) as deliveries,
            Inbox(self._bus, deliveries, self._spec.job, self._claim) as inbox,
        ):
            while not model.final:
                async with _beside(self._clean_up(model)):
                    model = await self._round(model, reducer, inbox, ledger, switch)
        return model

    async def _round(
        self, model: GlobalModel, reducer: Reducer, inbox: Inbox, ledger: Ledger, switch: Switch
    ) -> GlobalModel:
        """Collect the updates of the round that ``model`` begins; the model that follows, sealed."""
        models = {model.round: model}
        if self._spec.staleness:
            models |= await last_models(self._bus, self._spec.job, self._spec.staleness + 1)
        find_base = finder(self._bus, models)
        await reducer.begin(model.round, find_base)
        await reducer.reset()
        opened = await self._open(model, min(models), reducer.least, ledger)
        collector = Collector(self._bus, opened, models, reducer, self._emit, switch, time.monotonic)
        current = BusUpdate(await self._bus.fetch(model.info.id))
        closed = ClosedRound(model, opened, reducer, current, find_base)
        attempt = 0
        if (roster := ledger.rosters.get(model.round)) is not None:
            attempt = roster.attempt
            await collector.replay(roster)
        while True:
            if not opened.closed:
                attempt += 1
                accepted = await collector.collect(inbox)
                await self._decide(Roster.of(opened.number, attempt, accepted, opened.left))
            self._tell_closing(opened)
            try:
                made = await self._origin.make(closed)
                break
            except NotEnoughUpdates as error:
                collector.wait_for_more(error)
            except REFUSED as error:
                await collector.reopen(error, partial(self._origin.make, closed))
        following_model = await self._origin.follow(closed, made)
        await reducer.commit(following_model.round)
        self._emit("settled", round=opened.number, updates=await collector.settle())
        return following_model

    async def _open(self, model: GlobalModel, oldest: int, least: int, ledger: Ledger) -> Round:
        """The round as it stands: it may have begun before this process did, and be paused."""
        number, wall, now = model.round, time.time(), time.monotonic()
        began = min(wall, await self._records.open(number, wall))
        paused, since = paused_for(ledger.orders, began, wall)
        ledger.orders.clear()  # from here on the switch tells
        opened = Round(
            self._spec, number, now - (wall - began) + paused, ledger.before(number), oldest, least
        )
        if since is not None:
            opened.pause(now - max(0.0, wall - since))
        self._emit(
            "round",
            round=number,
            rounds=self._origin.rounds(model),
            sites=self._spec.full,
            expected=opened.expected,
            quorum=opened.enough,
            deadline=self._spec.deadline,
            mode=self._spec.mode,
        )
        if opened.paused:
            self._emit("paused", round=number)
        return opened

    async def _decide(self, roster: Roster) -> None:
        """Have it on record of what the model is made, before it is made."""
        decided = await self._records.close(roster)
        if decided.entries != roster.entries:
            raise FoldingInterrupted(
                f"another aggregator has closed round {roster.number} with other updates"
            )

    def _tell_closing(self, opened: Round) -> None:
        behind = opened.behind
        self._emit(
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

    async def _clean_up(self, model: GlobalModel) -> None:
        await self._origin.clean_up(model)
        await self._records.clean_up(model.round - self._spec.kept)

    async def _reducer_for(self, model: GlobalModel) -> Reducer:
        """The job's reducer, made once: its accumulator is the largest thing that this process holds."""
        layout = Layout.of((await self._bus.fetch(model.info.id)).manifest)
        if self._reducer is None or layout != self._layout:
            if self._reducer is not None:
                await self._reducer.aclose()
            self._reducer = None  # the old accumulator goes before the new one comes
            self._layout = layout
            self._reducer = self._make_reducer(layout, self._workspace)
        return self._reducer

    async def _forget_consumers(self) -> None:
        for consumer in (updates_consumer, seed_consumer, rounds_consumer):
            try:
                await self._bus.delete_consumer(consumer(self._spec.job))
            except NotFound:
                pass  # it was not there


def _reducer_of(spec: JobSpec) -> Callable[[Layout, Workspace], Reducer]:
    reducer = ReducerSpec.parse(spec.reducer)
    if spec.enough < reducer.least:
        raise InvalidSpecification(
            f"the reducer {reducer} needs {reducer.least} updates, but {spec.enough} can close a round"
        )
    return reducer.build


@asynccontextmanager
async def _beside(work: Coroutine[object, object, None]) -> AsyncGenerator[None]:
    """Have ``work`` done while the block runs, and end with it; an error in the block ends it."""
    task = asyncio.create_task(work)
    try:
        yield
    except BaseException:
        task.cancel()
        await asyncio.wait([task])
        raise
    await task
