"""Aggregator: the process that turns updates into models, round after round.

Strategy: the newest global model in the broker is the only state. It says which round is open and, in its
manifest, what a model consists of; everything else is rebuilt from the updates, which stay unacknowledged
until the next model is sealed. Starting, going on after ``kill -9`` and coming back after a lost broker are
therefore one and the same code: a *session*. It makes its consumer anew, so that the broker hands over every
stored update at once and in the order in which they were sealed; updates of rounds that are over are
recognised by their number. Idempotency keys see to it that each model exists once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from tensorbus.bus.client import Client, Message, Subscription
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.errors import BrokerUnavailable, MissingBase, NotFound, TransferStalled
from tensorbus.streaming.sources import ItemSource

from .collecting import Collector
from .events import Emitter, Event
from .folding import Folder, FoldingInterrupted
from .job import JobSpec, seed_consumer, seed_topic, state_name, updates_consumer, updates_topic
from .layout import Layout
from .models import GlobalModel, newest_model
from .publishing import Publisher
from .reducers.mean import Reducer, WeightedMean
from .rounds import Round
from .state_folder import StateFolder

log = logging.getLogger("tensorbus.aggregator")

INTERRUPTIONS = (BrokerUnavailable, TransferStalled, FoldingInterrupted)
PAUSE = 1.0
"""Seconds between two sessions; the client has been patient already."""


class Aggregator:
    """Runs one job from its first round, or from wherever it was, to its final model.

    Args:
        spec: the job. It is told to the sites with every model; a restart may change it for what follows.
        init: safetensors file of the first model; None to wait for a message on the job's seed topic.
        listener: called with every Event.
        reducer: makes the job's reducer for the layout of its model.
        state: folder for what outlives a restart: residuals of the models, and the first model where that is
            the base of the others and came as a seed. None is ``TENSORBUS_STATE``.

    Models that are sent as changes have the client's only base as theirs; if it has none, the first model.
    """

    def __init__(
        self,
        bus: Client,
        spec: JobSpec,
        *,
        init: Path | None,
        listener: Callable[[Event], None],
        reducer: Callable[[Layout], Reducer] = WeightedMean,
        state: str | Path | None = None,
    ) -> None:
        self._bus = bus
        self._spec = spec
        self._init = init
        self._emit = Emitter(listener)
        self._state = StateFolder(None if state is None else Path(state), state_name(spec.job))
        self._publisher = Publisher(bus, spec, self._emit, self._state)
        self._make_reducer = reducer
        self._layout: Layout | None = None
        self._folder: Folder | None = None

    async def run(self) -> GlobalModel:
        """Run the job to its end; the final model.

        Raises:
            BrokerUnavailable: the broker was never there. One that goes away later is waited for.
            JobError: another aggregator has taken the job over.
            UnsupportedDtype, InvalidSpecification: the model, or what is stored of the job, cannot be used.
            MissingBase: the models are sent as changes, and the base that they are from is not at hand.
        """
        await self._bus.topics()
        await self._find_base()
        try:
            while True:
                try:
                    return await self._session()
                except INTERRUPTIONS as error:
                    log.warning("interrupted: %s", error)
                    self._emit("interrupted", reason=str(error))
                    await asyncio.sleep(PAUSE)
        finally:
            if self._folder is not None:
                self._folder.close()

    async def _session(self) -> GlobalModel:
        await self._forget_consumers()
        model = await newest_model(self._bus, self._spec.job)
        if model is None:
            model = await self._first()
        else:
            self._emit("resumed", round=model.round, final=model.final, message=model.info.id)
            if self._wants_base and not model.final:
                raise MissingBase(
                    "the global models are sent as changes from the first one, which is not in the state "
                    f"folder {self._state.path()}; give it with --base"
                )
        if not model.final:
            folder = self._folder_for(await self._bus.fetch(model.info.id))
            async with self._bus.subscribe(
                updates_topic(self._spec.job),
                consumer=updates_consumer(self._spec.job),
                max_in_flight=2 * self._spec.sites + 16,
            ) as deliveries:
                while not model.final:
                    model = await self._round(model, folder, deliveries)
        await self._forget_consumers()
        await self._publisher.clean_up(model)
        await asyncio.to_thread(self._state.remove)
        self._emit("done", round=model.round, message=model.info.id)
        return model

    async def _round(self, model: GlobalModel, folder: Folder, deliveries: Subscription) -> GlobalModel:
        """Collect the updates of the round that ``model`` begins; the model that they make, sealed."""
        await self._publisher.clean_up(model)
        await folder.reset()
        opened = Round(self._spec, model.round, time.monotonic())
        self._emit(
            "round",
            round=opened.number,
            rounds=self._spec.rounds,
            sites=self._spec.sites,
            quorum=self._spec.quorum,
            deadline=self._spec.deadline,
        )
        collector = Collector(self._bus, opened, model.base, folder, self._emit, time.monotonic)
        await collector.collect(deliveries)
        self._emit(
            "closing",
            round=opened.number,
            sites=list(opened.accepted),
            num_examples=opened.weight,
            metrics=opened.metrics(),
        )
        items = await folder.result(await self._bus.fetch(model.info.id))
        following = await self._publisher.publish(opened.number + 1, ItemSource(model.info.container, items))
        self._emit("settled", round=opened.number, updates=await collector.settle())
        return following

    async def _first(self) -> GlobalModel:
        if self._init is not None:
            return await self._publisher.publish(1, self._init)
        topic = seed_topic(self._spec.job)
        self._emit("waiting", topic=topic)
        async with self._bus.subscribe(topic, consumer=seed_consumer(self._spec.job)) as deliveries:
            model = await self._publisher.publish(1, await self._seeded(await anext(deliveries)))
        await self._forget_consumers()
        return model

    async def _seeded(self, seed: Message) -> object:
        """The first model out of a seed."""
        if self._wants_base:
            path = await asyncio.to_thread(self._state.base)
            await seed.save(path)
            self._bus.add_base(path)
            return path
        folder = self._folder_for(seed)
        await folder.reset()
        await folder.fold(seed, 1.0, lambda _: None)
        return ItemSource(seed.info.container, await folder.result())

    @property
    def _wants_base(self) -> bool:
        """Whether models are to be sent as changes, and from what is not known."""
        down = Pipeline.parse(self._spec.down)
        return any(stage.against_base for stage in down.stages) and not self._bus.bases

    async def _find_base(self) -> None:
        """The base of the models where the client has none: the first model, if it is here."""
        if not self._wants_base:
            return
        if self._init is not None:
            self._bus.add_base(self._init)
        elif not self._state.lasting:
            raise MissingBase(
                "the global models are sent as changes from a base, and there is none: give --base or "
                "--init, or --state, a folder in which the first model is kept"
            )
        elif (path := await asyncio.to_thread(self._state.base)).exists():
            self._bus.add_base(path)

    def _folder_for(self, message: Message) -> Folder:
        """The job's folder, made once: its accumulator is the largest thing that this process holds."""
        layout = Layout.of(message.manifest)
        if self._folder is None or layout != self._layout:
            if self._folder is not None:
                self._folder.close()
            self._folder = None  # the old accumulator goes before the new one comes
            self._layout = layout
            self._folder = Folder(self._make_reducer(layout))
        return self._folder

    async def _forget_consumers(self) -> None:
        for consumer in (updates_consumer(self._spec.job), seed_consumer(self._spec.job)):
            try:
                await self._bus.delete_consumer(consumer)
            except NotFound:
                pass  # it was not there
