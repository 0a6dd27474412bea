"""Region: an aggregator in the midst of a tree, a participant of the job above and the origin of its own.

    async with Client(world_url) as world, Client(eu_url) as eu:
        parent = Parent(world, job="world", site="eu")
        origin = partial(Region, eu, spec, parent)
        await Aggregator(eu, spec, init=None, listener=print, origin=origin).run()

Strategy. A round's model comes from above and is passed on unopened, see `streaming.relay`: so the sites of a
region get the very bits that they would get above. What they answer is summed here, and goes up as one update
that weighs what they weigh together. Where both jobs are deterministic, not the mean is sent but the exact
sums (`partials`), so that the tree comes to the same bits as if all sites had answered above.

There is no state but what lies at the two brokers. Each model, update and decision has an idempotency key on
either side, so that a region which is killed at any instant goes on where it was.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

from tensorbus.bus.client import Client
from tensorbus.codecs.item import Item
from tensorbus.errors import (
    BrokerUnavailable,
    InvalidSpecification,
    JobCancelled,
    JobError,
    NotFound,
    RoundClosed,
    TransferStalled,
)

from .arriving import Arriving
from .events import Emitter
from .job import JobSpec, site_consumer
from .models import GlobalModel, newest_model
from .origin import ClosedRound
from .participant import Participant, Task
from .publishing import Publisher
from .reducers.spec import ReducerSpec
from .relaying import Relay
from .state_folder import StateFolder
from .switch import Switch
from .told_history import told_history
from .upward import Parent, Upward

__all__ = ["Parent", "Region"]

log = logging.getLogger("tensorbus.aggregator")

LOOK = 5.0
"""Seconds between two looks at whether the job above was cancelled, while this one's sites are waited for."""


class Region:
    """The `Origin` of a region's job.

    Its rounds have the numbers of those above, and it ends with the job above: ``rounds`` and ``down`` of its
    specification are not looked at. Only the mean makes sense in it: a median of sums is no median.

    Raises:
        InvalidSpecification: the job cannot be that of a region.
    """

    def __init__(self, bus: Client, spec: JobSpec, parent: Parent, emit: Emitter, state: StateFolder) -> None:
        reducer = ReducerSpec.parse(spec.reducer)
        if reducer.combiner.name != "mean" or reducer.optimizer is not None:
            raise InvalidSpecification(
                f"a region sums what its sites send, so its reducer is the mean, not {reducer}; that belongs "
                f"to the aggregator of {parent.job!r}"
            )
        if parent.job == spec.job and not set(parent.bus.urls).isdisjoint(bus.urls):
            raise InvalidSpecification(f"job {spec.job!r} cannot be its own parent")
        self._bus = bus
        self._spec = spec
        self._parent = parent
        self._emit = emit
        self._state = state
        self._publisher = Publisher(bus, spec, emit, state)
        self._relay = Relay(self._publisher)
        self._upward = Upward(spec, parent, emit)
        self._participant = Participant(parent.bus, job=parent.job, site=parent.site, state=parent.state)
        self._switch = Switch()
        self._tasks: AsyncIterator[Task] | None = None
        self._task: Task | None = None
        self._watch: asyncio.Task[None] | None = None

    async def prepare(self) -> None:
        """See `Origin`; all that can be known was seen to before."""

    def rounds(self, model: GlobalModel) -> int:
        """See `Origin`."""
        return model.spec.rounds

    async def start(self, switch: Switch) -> GlobalModel:
        """See `Origin`: the newest model above that this region has not answered yet.

        Raises:
            JobCancelled: this job was cancelled, or the one above.
            InvalidSpecification: this job cannot be a region of the one above.
        """
        await self.aclose()
        model = await newest_model(self._bus, self._spec.job)
        if model is not None and model.final:
            return model
        if model is None:
            self._emit("waiting", topic=f"fl.{self._parent.job}.model")
        self._switch = switch
        self._tasks = self._participant.rounds()
        model = await self._next()
        self._watch = asyncio.create_task(self._watch_above(), name="tensorbus-parent")
        return model

    async def make(self, closed: ClosedRound) -> Sequence[Item]:
        """See `Origin`: the exact sums, or the mean of those tensors that an update had."""
        return await self._upward.make(closed, self._taken(closed).spec)

    async def follow(self, closed: ClosedRound, made: Sequence[Item]) -> GlobalModel:
        """See `Origin`: send it upward, and wait for the model that comes of it."""
        await self._upward.submit(closed, made, self._taken(closed))
        return await self._next()

    async def clean_up(self, model: GlobalModel) -> None:
        """See `Origin`."""
        await self._publisher.clean_up(model)

    async def cancel(self) -> GlobalModel | None:
        """See `Origin`. The job above hears that this region leaves, unless it was cancelled itself."""
        if (final := await self._publisher.cancel()) is not None:
            return final
        with suppress(JobCancelled):
            await self._participant.leave(f"its job {self._spec.job} was cancelled")
        with suppress(NotFound):
            await self._parent.bus.delete_consumer(site_consumer(self._parent.job, self._parent.site))
        return None

    async def finish(self) -> None:
        """See `Origin`."""
        await self.aclose()
        await asyncio.to_thread(self._upward.state.remove)
        await asyncio.to_thread(self._state.remove)

    async def aclose(self) -> None:
        """See `Origin`."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
            await asyncio.wait([watch])
        tasks, self._tasks = self._tasks, None
        aclose = getattr(tasks, "aclose", None)
        if aclose is not None:
            await aclose()

    def _taken(self, closed: ClosedRound) -> Task:
        if self._task is None or self._task.round != closed.round.number:
            raise JobError(f"round {closed.round.number} is none that the job above has given")
        return self._task

    # --- downward ------------------------------------------------------------------------------------

    async def _next(self) -> GlobalModel:
        """The next model above, sealed in this job."""
        assert self._tasks is not None
        history = await told_history(self._bus, self._spec)
        while True:
            self._task = await anext(self._tasks, None)
            arriving = self._participant.final if self._task is None else self._task.arriving
            if await self._switch.going(self._emit, arriving.round) and await self._is_over(arriving):
                continue  # there is a newer one by now
            try:
                if not arriving.final:
                    self._upward.exactly(arriving.spec)
                return await self._relay.pass_on(arriving, history)
            except RoundClosed as error:
                if self._task is None:
                    raise
                log.info("round %d above is over already: %s", self._task.round, error)

    async def _is_over(self, arriving: Arriving) -> bool:
        newest = await newest_model(self._parent.bus, self._parent.job)
        return newest is not None and newest.round > arriving.round

    # --- sideways ------------------------------------------------------------------------------------

    async def _watch_above(self) -> None:
        """Cancel this job when the one above is, though nobody waits for that one at the moment."""
        while True:
            await asyncio.sleep(LOOK)
            try:
                await newest_model(self._parent.bus, self._parent.job)
            except JobCancelled:
                self._switch.cancel()
                return
            except (BrokerUnavailable, TransferStalled) as error:
                log.info("job %s cannot be seen at the moment: %s", self._parent.job, error)
