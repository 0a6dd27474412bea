"""Root: the models of a federation come from a file, a seed, and then from its rounds."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence
from pathlib import Path

from tensorbus.bus.client import Client, Message
from tensorbus.codecs.item import Item
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.errors import MissingBase
from tensorbus.streaming.sources import ItemSource

from .bus_update import BusUpdate
from .events import Emitter
from .history import appended
from .inbox import Inbox
from .job import JobSpec, seed_consumer, seed_topic
from .layout import Layout
from .models import GlobalModel, newest_model
from .origin import ClosedRound
from .publishing import Publisher
from .reducers.base import Workspace
from .reducers.mean import Mean
from .state_folder import StateFolder
from .switch import Switch
from .updates import Contribution


class Root:
    """The `Origin` of a job that stands for itself.

    Args:
        init: safetensors file, or adapter folder, of the first model; None to wait for a message on the job's
            seed topic.
    """

    def __init__(
        self, bus: Client, spec: JobSpec, init: Path | None, emit: Emitter, state: StateFolder
    ) -> None:
        self._bus = bus
        self._spec = spec
        self._init = init
        self._emit = emit
        self._state = state
        self._publisher = Publisher(bus, spec, emit, state)

    async def prepare(self) -> None:
        """Find the base of the models where the client has none: the first model, if it is here."""
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

    def rounds(self, model: GlobalModel) -> int:
        """See `Origin`: a restart may have changed it since ``model`` was made."""
        return self._spec.rounds

    async def start(self, switch: Switch) -> GlobalModel:
        model = await newest_model(self._bus, self._spec.job)
        if model is None:
            return await self._first(switch)
        self._emit("resumed", round=model.round, final=model.final, message=model.info.id)
        if self._wants_base and not model.final:
            raise MissingBase(
                "the global models are sent as changes from the first one, which is not in the state "
                f"folder {self._state.path()}; give it with --base"
            )
        return model

    async def make(self, closed: ClosedRound) -> Sequence[Item]:
        return await closed.reducer.close(closed.current, closed.find_base)

    async def follow(self, closed: ClosedRound, made: Sequence[Item]) -> GlobalModel:
        # Such as the configuration of an adapter, which goes from model to model.
        metadata = (await closed.current.message.envelope()).metadata
        source = ItemSource(closed.model.info.container, made, metadata)
        done = closed.round
        history = appended(closed.model.headers.history, done.number, len(done.accepted), done.metrics())
        return await self._publisher.publish(done.number + 1, source, history)

    async def clean_up(self, model: GlobalModel) -> None:
        await self._publisher.clean_up(model)

    async def cancel(self) -> GlobalModel | None:
        return await self._publisher.cancel()

    async def finish(self) -> None:
        await asyncio.to_thread(self._state.remove)

    async def aclose(self) -> None:
        """See `Origin`; there is nothing to give back."""

    # --- the first model -----------------------------------------------------------------------------

    async def _first(self, switch: Switch) -> GlobalModel:
        if self._init is not None:
            await switch.going(self._emit, 1)
            return await self._publisher.publish(1, self._init)
        job = self._spec.job
        self._emit("waiting", topic=seed_topic(job))
        async with (
            self._bus.subscribe(seed_topic(job), consumer=seed_consumer(job)) as deliveries,
            Inbox(self._bus, deliveries, job) as inbox,
        ):
            seed = None
            while seed is None:
                seed = await inbox.next(switch.changed)
            await switch.going(self._emit, 1)
            model = await self._seeded(seed)
        # What has published it refers to itself and to the seed's values: they go before the round's come.
        gc.collect()
        return model

    async def _seeded(self, seed: Message) -> GlobalModel:
        """The first model out of a seed, which is decoded, in whatever it was encoded with."""
        if self._wants_base:
            path = await asyncio.to_thread(self._state.base)
            await seed.save(path)
            self._bus.add_base(path)
            return await self._publisher.publish(1, path)
        mean = Mean(Layout.of(seed.manifest), Workspace(self._state.path))
        try:
            update = BusUpdate(seed)
            await mean.reset()
            await mean.add(update, Contribution(seed.id, "seed", 0, 1.0, ""), lambda _: None)
            items = await mean.close(update, _no_base)
            metadata = (await seed.envelope()).metadata
            return await self._publisher.publish(1, ItemSource(seed.info.container, items, metadata))
        finally:
            await mean.aclose()

    @property
    def _wants_base(self) -> bool:
        """Whether models are to be sent as changes, and from what is not known."""
        down = Pipeline.parse(self._spec.down)
        return any(stage.against_base for stage in down.stages) and not self._bus.bases


async def _no_base(base: str) -> BusUpdate:
    raise MissingBase(f"a seed has to be sent whole; it is a change from {base}")
