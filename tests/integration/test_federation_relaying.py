"""A region passes a model on while it arrives: read along below, broken off above, killed in the midst."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest

from federating.gated import COUNT, Gated
from tensorbus.aggregator.arriving import Arriving
from tensorbus.aggregator.events import Emitter, Event
from tensorbus.aggregator.headers import ModelHeaders
from tensorbus.aggregator.job import JobSpec, model_topic
from tensorbus.aggregator.models import GlobalModel, coming_model, newest_model
from tensorbus.aggregator.publishing import Publisher
from tensorbus.aggregator.relaying import Relay
from tensorbus.aggregator.state_folder import StateFolder
from tensorbus.bus.client import Client, Progress
from tensorbus.bus.testing import running_broker
from tensorbus.errors import MessageAborted
from tensorbus.streaming.sources import ItemSource

PROCESS = Path(__file__).with_name("killable_region.py")
PATIENCE = 15.0
"""Seconds that no test here comes near; it turns a hang into a failure."""

WORLD = JobSpec("world", sites=1, rounds=1, quorum=1, deadline=600)
EU = JobSpec("eu", sites=1, rounds=1000, quorum=1, deadline=600)


@dataclass
class Above:
    """Publishes the first model of ``world``, half of it at first."""

    bus: Client
    fill: float = 0.0
    gate: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        source = ItemSource("numpy", [Gated(self.fill, self.gate)])
        headers = ModelHeaders(1, False, WORLD).to_headers()
        self._publishing = asyncio.create_task(
            self.bus.publish(model_topic("world"), source, headers=headers)
        )

    async def coming(self) -> GlobalModel:
        """The model, as soon as anybody can see it."""
        return await seen(self.bus, "world")

    async def finish(self) -> None:
        """The other half."""
        self.gate.set()
        await self._publishing

    async def break_off(self) -> None:
        """It is given up for good: without a key, no other process can go on with it."""
        self._publishing.cancel()
        self.gate.set()
        await asyncio.wait([self._publishing])


@dataclass(frozen=True)
class Pair:
    """A root's broker and a region's."""

    upper: Client
    lower: Client
    folder: Path
    events: list[Event] = field(default_factory=list[Event])

    def relay(self) -> Relay:
        """Of the region's job."""
        state = StateFolder(self.folder / "state", "eu")
        return Relay(Publisher(self.lower, EU, Emitter(self.events.append), state))


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    """Real brokers."""
    async with (
        asyncio.timeout(PATIENCE),
        running_broker(tmp_path / "upper") as upper,
        running_broker(tmp_path / "lower") as lower,
        Client(upper) as above,
        Client(lower) as below,
    ):
        yield Pair(above, below, tmp_path)


async def seen(bus: Client, job: str) -> GlobalModel:
    """The model that is being published in a job."""
    while (model := await coming_model(bus, job)) is None:
        await asyncio.sleep(0.01)
    return model


async def values(model: GlobalModel) -> npt.NDArray[np.float32]:
    """Its tensor."""
    return cast("dict[str, npt.NDArray[np.float32]]", await model.load())["w"]


async def test_sites_below_read_along_while_the_model_arrives_above(pair: Pair) -> None:
    """Half of it is above, and is decoded below; then the rest follows, and both are sealed, bit for bit."""
    above = Above(pair.upper)
    relaying = asyncio.create_task(pair.relay().pass_on(Arriving(await above.coming())))
    below = await seen(pair.lower, "eu")
    reached = asyncio.Event()

    def told(progress: Progress) -> None:
        if progress.bytes_on_wire > 10 << 20:
            reached.set()

    loading = asyncio.create_task(Arriving(below).load(progress=told))
    await reached.wait()
    assert not relaying.done() and not loading.done()
    assert await newest_model(pair.lower, "eu") is None
    await above.finish()
    model = await relaying
    assert (model.round, model.final, model.sealed, model.spec.job) == (1, False, True, "eu")
    expected = np.arange(COUNT, dtype=np.float32)
    assert np.array_equal(await values(model), expected)
    assert np.array_equal(cast("dict[str, npt.NDArray[np.float32]]", await loading)["w"], expected)
    assert {event.name for event in pair.events} == {"relaying", "publishing", "published"}
    assert not list(pair.folder.glob("state/**/*.frames*"))
    assert await pair.relay().pass_on(Arriving(cast(GlobalModel, await newest_model(pair.upper, "world"))))
    assert len([info async for info in pair.lower.messages()]) == 1  # it was there already


async def test_what_breaks_off_above_is_never_sealed_below(pair: Pair) -> None:
    """Who reads it below hears of it; the next attempt above is passed on instead, to the same call."""
    above = Above(pair.upper)
    relaying = asyncio.create_task(pair.relay().pass_on(Arriving(await above.coming())))
    below = await seen(pair.lower, "eu")
    reading = asyncio.create_task((await pair.lower.fetch(below.info.id)).load())
    await above.break_off()
    with pytest.raises(MessageAborted):
        await reading
    assert not relaying.done()
    assert [info async for info in pair.lower.messages()] == []
    again = Above(pair.upper, fill=7.0)
    while (second := await seen(pair.lower, "eu")).info.id == below.info.id:
        await asyncio.sleep(0.01)
    assert not relaying.done()
    await again.finish()
    model = await relaying
    assert model.info.id == second.info.id
    assert np.array_equal(await values(model), np.arange(COUNT, dtype=np.float32) + np.float32(7))


async def test_a_region_that_is_killed_goes_on_with_the_message_that_it_had_begun(pair: Pair) -> None:
    """Killed with half of the model below, and started again before there is more of it above."""
    above = Above(pair.upper)
    await above.coming()

    async def region(*fatal: str) -> asyncio.subprocess.Process:
        given = (pair.lower.url, json.dumps(EU.to_json()), pair.upper.url, "world", "eu")
        command = (str(PROCESS), *given, str(pair.folder / "state"), *fatal)
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(sys.executable, *command, stdout=pipe)

    process = await region("publishing", "5")
    await process.communicate()
    assert process.returncode == -signal.SIGKILL
    begun = await seen(pair.lower, "eu")
    assert begun.info.bytes > 1 << 20
    process = await region()
    try:
        while (await seen(pair.lower, "eu")).info.bytes < 10 << 20:
            await asyncio.sleep(0.02)
        await above.finish()
        while (model := await newest_model(pair.lower, "eu")) is None:
            await asyncio.sleep(0.02)
    finally:
        process.terminate()
        await process.communicate()
    assert model.info.id == begun.info.id
    assert np.array_equal(await values(model), np.arange(COUNT, dtype=np.float32))
    assert not list(pair.folder.glob("state/**/*.part"))
