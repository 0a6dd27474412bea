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
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tensorbus.bus.client import Client, Progress
from tensorbus.codecs.item import Item
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.errors import (
    BrokerUnavailable,
    InvalidSpecification,
    JobCancelled,
    JobError,
    NotFound,
    RoundClosed,
    TransferStalled,
)
from tensorbus.streaming.sources import ItemSource

from .control import Switch, bury
from .events import Emitter
from .headers import MAX_METRICS, UpdateHeaders
from .job import JobSpec, check_name, site_consumer, state_name
from .models import GlobalModel, last_models, newest_model
from .origin import ClosedRound
from .participant import Participant, Task
from .publishing import Publisher
from .reducers.base import Reducer
from .reducers.spec import ReducerSpec
from .relaying import Relay
from .state_folder import StateFolder
from .uplink import Uplink

T = TypeVar("T")
log = logging.getLogger("tensorbus.aggregator")

LOOK = 5.0
"""Seconds between two looks at whether the job above was cancelled, while this one's sites are waited for."""


@dataclass(frozen=True, slots=True)
class Parent:
    """The job above, and who a region is there.

    Attributes:
        bus: client of its broker, which may be another one.
        job, site: its name, and the region's among its sites.
        state: folder for what updates to it need, see `Participant`; None is ``TENSORBUS_STATE``.
    """

    bus: Client
    job: str
    site: str
    state: Path | None = None

    def __post_init__(self) -> None:
        check_name(self.job, "job")
        check_name(self.site, "site")


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
        if (parent.bus.url, parent.job) == (bus.url, spec.job):
            raise InvalidSpecification(f"job {spec.job!r} cannot be its own parent")
        self._bus = bus
        self._spec = spec
        self._parent = parent
        self._emit = emit
        self._state = state
        self._publisher = Publisher(bus, spec, emit, state)
        self._relay = Relay(self._publisher)
        self._upper_state = StateFolder(parent.state, state_name(parent.job, parent.site))
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
        model = await self._unless_ordered(self._next())
        self._watch = asyncio.create_task(self._watch_above(), name="tensorbus-parent")
        return model

    async def make(self, closed: ClosedRound) -> Sequence[Item]:
        """See `Origin`: the exact sums, or the mean of those tensors that an update had."""
        if self._exactly(self._taken(closed).spec):
            return closed.reducer.partial()
        items = await closed.reducer.close(closed.current, closed.find_base)
        return await asyncio.to_thread(_trained, closed.reducer, items)

    async def follow(self, closed: ClosedRound, made: Sequence[Item]) -> GlobalModel:
        """See `Origin`: send it upward, and wait for the model that comes of it."""
        await self._unless_ordered(self._submit(closed, made))
        return await self._unless_ordered(self._next())

    async def clean_up(self, model: GlobalModel) -> None:
        """See `Origin`."""
        await self._publisher.clean_up(model)

    async def cancel(self) -> None:
        """See `Origin`. The job above hears that this region leaves, unless it was cancelled itself."""
        models = await last_models(self._bus, self._spec.job, 1)
        await bury(self._bus, self._spec.job, max(models, default=0))
        await self._publisher.clear()
        with suppress(JobCancelled):
            await self._participant.leave(f"its job {self._spec.job} was cancelled")
        with suppress(NotFound):
            await self._parent.bus.delete_consumer(site_consumer(self._parent.job, self._parent.site))

    async def finish(self) -> None:
        """See `Origin`."""
        await self.aclose()
        await asyncio.to_thread(self._upper_state.remove)
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

    # --- upward --------------------------------------------------------------------------------------

    async def _submit(self, closed: ClosedRound, made: Sequence[Item]) -> None:
        task = self._taken(closed)
        exactly = self._exactly(task.spec)
        weight = closed.round.weight
        headers = UpdateHeaders(
            self._parent.site,
            task.round,
            weight,
            dict(list(closed.round.metrics().items())[:MAX_METRICS]),
            partial=exactly,
        )

        def told(progress: Progress) -> None:
            moved, total = progress.bytes_on_wire, progress.total_on_wire
            self._emit("submitting", round=task.round, bytes=moved, total_bytes=total)

        source = ItemSource("numpy" if exactly else closed.model.info.container, made)
        uplink = Uplink(task.arriving, self._parent.site, self._upper_state)
        receipt = await uplink.send(source, headers, told, exactly=exactly)
        if receipt is None:
            self._emit("overtaken", round=task.round, parent=self._parent.job)
            return
        self._emit(
            "submitted",
            round=task.round,
            parent=self._parent.job,
            message=receipt.id,
            weight=weight,
            exact=exactly,
            bytes_on_wire=receipt.bytes_on_wire,
            duplicate=receipt.duplicate,
        )

    def _exactly(self, above: JobSpec) -> bool:
        """Whether exact sums are sent: they are if the mean above is to be exact.

        Raises:
            InvalidSpecification: it is to be, and cannot.
        """
        if not above.deterministic:
            return False
        reducer = ReducerSpec.parse(above.reducer)
        if not self._spec.deterministic:
            raise InvalidSpecification(
                f"job {above.job!r} is deterministic, so its regions have to be: --deterministic is missing"
            )
        if reducer.combiner.name != "mean":
            return False
        if reducer.transforms:
            names = ", ".join(step.name for step in reducer.transforms)
            raise InvalidSpecification(
                f"job {above.job!r} does {names} to each update, which cannot be done to the sums of a "
                "region: have the regions do it"
            )
        up = Pipeline.parse(above.up)
        if up.skip or any(stage.private for stage in up.stages):
            raise InvalidSpecification(
                f"updates to job {above.job!r} are to be clipped, noised or sent in part (its --up), which "
                "cannot be done to the exact sums of a region: have the regions' sites do it"
            )
        if self._spec.staleness:
            raise InvalidSpecification(
                f"job {above.job!r} is deterministic: a region's sums are of one model, so nothing in "
                "it may be late; --staleness has to be 0"
            )
        return True

    def _taken(self, closed: ClosedRound) -> Task:
        if self._task is None or self._task.round != closed.round.number:
            raise JobError(f"round {closed.round.number} is none that the job above has given")
        return self._task

    # --- downward ------------------------------------------------------------------------------------

    async def _next(self) -> GlobalModel:
        """The next model above, sealed in this job."""
        assert self._tasks is not None
        while True:
            self._task = await anext(self._tasks, None)
            arriving = self._participant.final if self._task is None else self._task.arriving
            try:
                if not arriving.final:
                    self._exactly(arriving.spec)
                return await self._relay.pass_on(arriving)
            except RoundClosed as error:
                if self._task is None:
                    raise
                log.info("round %d above is over already: %s", self._task.round, error)

    # --- what people want ----------------------------------------------------------------------------

    async def _unless_ordered(self, work: Coroutine[object, object, T]) -> T:
        """The result of ``work``, which ends when this job is cancelled. Raises JobCancelled."""
        task = asyncio.create_task(work)
        try:
            while not task.done():
                self._switch.check()
                change = asyncio.create_task(self._switch.changed.wait())
                await asyncio.wait([task, change], return_when=asyncio.FIRST_COMPLETED)
                change.cancel()
                self._switch.changed.clear()
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])

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


def _trained(reducer: Reducer, items: Sequence[Item]) -> Sequence[Item]:
    """Without the tensors that no update had: above they count as not sent, too."""

    def had(name: str) -> bool:
        return reducer.values(name) is not None

    sent = {item.spec.name for item in items if item.spec.view is None and item.spec.kind == "tensor"}
    lacking = {name for name in sent if not had(name)}
    names = [(item, item.spec.name if item.spec.view is None else item.spec.view.of) for item in items]
    return [item for item, name in names if name not in lacking]
