"""Pause, resume, cancel and look at a job, from the command line and from code."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from tensorbus.aggregator.control import Action, give_order
from tensorbus.aggregator.events import Event
from tensorbus.aggregator.job import JobSpec
from tensorbus.aggregator.models import GlobalModel
from tensorbus.aggregator.participant import Participant, Task
from tensorbus.aggregator.status import job_status
from tensorbus.aggregator.worker import Aggregator
from tensorbus.bus.client import Client
from tensorbus.bus.testing import running_broker
from tensorbus.errors import JobCancelled, JobError, NotFound

PATIENCE = 60.0
SPEC = JobSpec("sft", sites=2, rounds=2, quorum=2, deadline=600)


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[Client]:
    """A real broker and a client of it."""
    async with running_broker(tmp_path / "broker") as url, Client(url) as client:
        yield client


class Watch:
    """The events of an aggregator, and a way to wait for one."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    async def seen(self, name: str, times: int = 1) -> Event:
        """The last of ``times`` events of this name."""
        while len(found := [event for event in self.events if event.name == name]) < times:
            await asyncio.sleep(0.01)
        return found[-1]


def aggregate(bus: Client, told: Callable[[Event], None], spec: JobSpec = SPEC) -> asyncio.Task[GlobalModel]:
    """An aggregator in this process."""
    return asyncio.create_task(Aggregator(bus, spec, init=None, listener=told).run())


async def join(bus: Client, site: str) -> Task:
    """The open round's task of a site."""
    return await anext(Participant(bus, job="sft", site=site).rounds())


async def answer(bus: Client, site: str) -> None:
    """A site's update to the open round."""
    await (await join(bus, site)).submit({"w": np.ones(3, np.float32)}, num_examples=1)


async def tensorbus(*arguments: str) -> tuple[int, str]:
    """The command's exit code and what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tensorbus", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    return cast(int, process.returncode), out.decode()


async def test_a_paused_round_takes_updates_and_closes_when_the_job_is_resumed(bus: Client) -> None:
    """Nothing closes while it is paused, though everybody is in; and a restart is paused as well."""
    await bus.publish("fl.sft.seed", {"w": np.zeros(3, np.float32)})
    async with asyncio.timeout(PATIENCE):
        watch = Watch()
        run = aggregate(bus, watch)
        await watch.seen("round")
        await give_order(bus, "sft", "pause")
        await watch.seen("paused")
        await answer(bus, "a")
        await answer(bus, "b")
        while (status := await job_status(bus, "sft")).sites != ("a", "b"):
            await asyncio.sleep(0.01)
        assert (status.state, status.round, status.full) == ("paused", 1, 2)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        async with Client(bus.url) as theirs:
            second = Watch()
            run = aggregate(theirs, second)
            await second.seen("paused")
            assert not any(event.name == "closing" for event in watch.events + second.events)
            await give_order(bus, "sft", "resume")
            await second.seen("published")
            assert (await job_status(bus, "sft")).round == 2
            await answer(bus, "a")
            await answer(bus, "b")
            assert (await run).final
    assert (await job_status(bus, "sft")).state == "done"


async def test_a_cancelled_job_ends_for_everybody_and_keeps_its_last_model(bus: Client) -> None:
    """Sites that train, sites that wait, the aggregator, and whoever starts one again."""
    await bus.publish("fl.sft.seed", {"w": np.zeros(3, np.float32)})
    async with asyncio.timeout(PATIENCE), Client(bus.url) as theirs:
        watch = Watch()
        run = aggregate(theirs, watch)
        await answer(bus, "a")
        trains = Participant(bus, job="sft", site="b")
        rounds = trains.rounds()
        task = await anext(rounds)
        waits = asyncio.ensure_future(anext(Participant(bus, job="sft", site="a").rounds()))
        await watch.seen("folded")
        await give_order(bus, "sft", "cancel")
        with pytest.raises(JobCancelled):
            await run
        with pytest.raises(JobCancelled):
            await waits
        assert await task.submit({"w": np.ones(3, np.float32)}, num_examples=1) is None
        with pytest.raises(JobCancelled):
            await anext(rounds)
        with pytest.raises(JobError, match="no final model"):
            _ = trains.final
        assert watch.events[-1].name == "cancelled"
        assert (await job_status(bus, "sft")).state == "cancelled"
        left = [info async for info in bus.messages()]
        assert [info.headers["kind"] for info in left] == ["model", "cancelled"]
        assert not [each.name for each in await bus.consumers() if "aggregator" in each.name]
        with pytest.raises(JobCancelled):
            await aggregate(theirs, watch)


async def test_a_job_that_is_cancelled_while_no_aggregator_runs_ends_when_one_is_started(bus: Client) -> None:
    """The order lies at the broker; even one that waits for a first model hears of it."""
    async with asyncio.timeout(PATIENCE), Client(bus.url) as theirs:
        watch = Watch()
        run = aggregate(theirs, watch)
        await watch.seen("waiting")
        await give_order(bus, "sft", "cancel")
        with pytest.raises(JobCancelled):
            await run
        with pytest.raises(JobCancelled):
            await join(bus, "a")


async def order(bus: Client, action: Action) -> str:
    """Give an order from the command line."""
    code, text = await tensorbus("job", action, "--url", bus.url, "--job", "sft", "--json")
    assert code == 0, text
    assert json.loads(text) == {"job": "sft", "ordered": action}
    return text


async def test_the_command_line_shows_pauses_and_cancels_a_job(bus: Client) -> None:
    """The aggregator's exit code tells a cancelled job from a failed one."""
    async with asyncio.timeout(PATIENCE):
        code, text = await tensorbus("job", "status", "--url", bus.url, "--job", "sft")
        assert (code, "knows no job 'sft'" in text) == (4, True)
        await bus.publish("fl.sft.seed", {"w": np.zeros(3, np.float32)})
        command = ["aggregate", "--url", bus.url, "--job", "sft", "--sites", "3", "--rounds", "1"]
        run = asyncio.create_task(tensorbus(*command))
        await answer(bus, "a")
        await (await join(bus, "b")).decline("no power")
        await order(bus, "pause")
        while (found := await status(bus))["state"] != "paused":
            await asyncio.sleep(0.05)
        assert (found["sites"], found["declined"], found["round"]) == (["a"], ["b"], 1)
        _, text = await tensorbus("job", "status", "--url", bus.url, "--job", "sft")
        assert "round 1 of 1 is paused" in text
        assert "declined: b" in text
        await order(bus, "resume")
        await order(bus, "cancel")
        code, text = await run
        assert code == 5, text
        assert "b sits this round out: no power" in text
        code, text = await tensorbus("job", "pause", "--url", bus.url, "--job", "sft")
        assert (code, "there is nothing to pause" in text) == (1, True)
        with pytest.raises(NotFound):
            await job_status(bus, "other")


async def status(bus: Client) -> dict[str, Any]:
    """What the command line says of the job."""
    code, text = await tensorbus("job", "status", "--url", bus.url, "--job", "sft", "--json")
    assert code == 0, text
    return json.loads(text)
