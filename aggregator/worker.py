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
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
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

from .claim import Claim
from .events import Emitter, Event
from .inbox import Inbox
from .job import JobSpec, rounds_consumer, seed_consumer, state_name, updates_consumer
from .layout import Layout
from .models import GlobalModel
from .origin import Origin
from .records import Ledger, Records
from .reducers.base import Reducer, Workspace
from .reducers.spec import ReducerSpec
from .root import Root
from .session import Session
from .state_folder import StateFolder
from .switch import Switch, obeying, orders_of
from .updates import FoldingInterrupted

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
                switch = Switch(ledger.orders, self._records.orders)
                model = await obeying(self._job(ledger, switch), switch, orders, self._claim)
        except JobCancelled as cancelled:
            ended = await self._origin.cancel()
            if ended is None:
                await self._end()
                self._emit("cancelled", reason=str(cancelled))
                raise
            model = ended  # the order came when everything was done
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

    async def _job(self, ledger: Ledger, switch: Switch) -> GlobalModel:
        """All rounds that are still to come; the final model."""
        switch.check()
        model = await self._origin.start(switch)
        if model.final:
            return model
        reducer = await self._reducer_for(model)
        # The process before this one may have been killed just before it did.
        await reducer.commit(model.round)
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
            session = Session(
                self._bus, self._spec, self._emit, self._records, self._origin, ledger, switch, inbox, reducer
            )
            while not model.final:
                async with _beside(self._clean_up(model)):
                    model = await session.round(model)
        return model

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
