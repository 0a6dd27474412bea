"""Overlap: sites read a model while it is still being published."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

from tensorbus.aggregator.headers import ModelHeaders
from tensorbus.aggregator.job import JobSpec, model_key, model_topic
from tensorbus.aggregator.participant import Participant, Task
from tensorbus.bus.client import Client, Progress
from tensorbus.bus.testing import running_broker
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.errors import MessageAborted

Arrays = dict[str, npt.NDArray[Any]]
PATIENCE = 60.0
LENGTH = 8_000_000
UP = Pipeline.parse("delta | none").to_json()
SPEC = JobSpec("sft", sites=1, rounds=3, quorum=1, deadline=600, up=UP)


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[Client]:
    """A real broker and a client of it."""
    async with running_broker(tmp_path / "broker") as url, Client(url) as client:
        yield client


class SlowPublisher:
    """Publishes a model, and stands still after half of it until it may go on."""

    def __init__(self, bus: Client, number: int, value: float) -> None:
        self.half = asyncio.Event()
        self.go_on = asyncio.Event()
        self.work = asyncio.create_task(self._publish(bus, number, value))

    async def _publish(self, bus: Client, number: int, value: float) -> None:
        await bus.publish(
            model_topic("sft"),
            {"w": np.full(LENGTH, value, np.float32)},
            headers=ModelHeaders(number, number > SPEC.rounds, SPEC).to_headers(),
            key=model_key("sft", number),
            progress=self._hold,
        )

    async def _hold(self, progress: Progress) -> None:
        if progress.bytes_on_wire > 2 * LENGTH:
            self.half.set()
            await self.go_on.wait()


class Site:
    """A participant that notes how much of a model has come."""

    def __init__(self, bus: Client, folder: Path) -> None:
        self.arrived = asyncio.Event()
        self.participant = Participant(bus, job="sft", site="a", state=folder, down=self._note)
        self.rounds = self.participant.rounds()

    def _note(self, progress: Progress) -> None:
        if progress.bytes_on_wire > LENGTH:
            self.arrived.set()

    async def task(self) -> Task:
        """The next one."""
        return await anext(self.rounds)


def value_of(container: object) -> set[float]:
    """The values of a model that is the same number all over."""
    return set(np.unique(cast(Arrays, container)["w"]).tolist())


async def test_a_site_has_bytes_of_a_model_before_it_is_sealed(bus: Client, tmp_path: Path) -> None:
    """And may send a change from it in the end; the script does not know."""
    site = Site(bus, tmp_path / "state")
    async with asyncio.timeout(PATIENCE):
        publisher = SlowPublisher(bus, 1, 1.0)
        task = await site.task()
        loading = asyncio.create_task(task.load())
        await site.arrived.wait()
        assert [info async for info in bus.messages(model_topic("sft"))] == []
        assert not task.model.sealed
        publisher.go_on.set()
        model = await loading
        assert value_of(model) == {1.0}
        assert task.model.sealed
        kept = {path.name for path in (tmp_path / "state" / "sft--a").iterdir()}
        assert kept == {f"model-{task.model.info.digest}.safetensors", "lock"}
        assert await task.submit(model, num_examples=1)
        await publisher.work


async def test_the_final_model_is_followed_as_well(bus: Client, tmp_path: Path) -> None:
    """The loop has ended when it begins to come."""
    site = Site(bus, tmp_path / "state")
    async with asyncio.timeout(PATIENCE):
        publisher = SlowPublisher(bus, 4, 4.0)
        await publisher.half.wait()
        assert [task async for task in site.rounds] == []
        loading = asyncio.create_task(site.participant.final.load(progress=site._note))  # pyright: ignore[reportPrivateUsage]
        await site.arrived.wait()
        publisher.go_on.set()
        assert value_of(await loading) == {4.0}
        assert site.participant.final.info.bytes > 4 * LENGTH
        await publisher.work


async def test_a_publication_that_is_given_up_is_waited_for_until_somebody_makes_it_again(
    bus: Client, tmp_path: Path
) -> None:
    """What was read of it is not used: here it comes with other values."""
    site = Site(bus, tmp_path / "state")
    async with asyncio.timeout(PATIENCE):
        first = SlowPublisher(bus, 1, 1.0)
        task = await site.task()
        loading = asyncio.create_task(task.load())
        await site.arrived.wait()
        (coming,) = await bus.open_messages(model_topic("sft"))
        await bus.delete(coming.id)
        first.go_on.set()
        with pytest.raises(MessageAborted):
            await first.work
        second = SlowPublisher(bus, 1, 2.0)
        await second.half.wait()
        assert not loading.done()
        second.go_on.set()
        model = await loading
        assert value_of(model) == {2.0}
        assert await task.submit(model, num_examples=1)
        await second.work


async def test_an_unfinished_model_of_a_killed_aggregator_is_finished_by_the_next(
    bus: Client, tmp_path: Path
) -> None:
    """Nothing comes for a while; then the same bytes go on, and the site never began again."""
    site = Site(bus, tmp_path / "state")
    async with asyncio.timeout(PATIENCE):
        async with Client(bus.url) as theirs:
            first = SlowPublisher(theirs, 1, 1.0)
            task = await site.task()
            loading = asyncio.create_task(task.load())
            await site.arrived.wait()
            first.work.cancel()  # as a process that is gone: the upload is left as it is
            with pytest.raises(asyncio.CancelledError):
                await first.work
        (coming,) = await bus.open_messages(model_topic("sft"))
        second = SlowPublisher(bus, 1, 1.0)
        second.go_on.set()
        assert value_of(await loading) == {1.0}
        assert task.model.info.id == coming.id
        await second.work
