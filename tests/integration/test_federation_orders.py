"""Pause, resume and cancel at every step of a round: while it collects, closes and publishes.

The aggregator stands still at a point of its work, the order is given, and it goes on: so each order comes at
each moment, as on a machine that was busy.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from federating.answering import Answers, Arrays, look_on, same, state, submit
from federating.gated import COUNT, Gated
from federating.stoppable import Make, Point, Stoppable
from tensorbus.aggregator.control import give_order
from tensorbus.aggregator.events import Event
from tensorbus.aggregator.job import JobSpec, claims_topic, model_topic, rounds_topic, seed_topic
from tensorbus.aggregator.models import GlobalModel, coming_model, last_models
from tensorbus.aggregator.participant import Participant
from tensorbus.aggregator.region import Parent, Region
from tensorbus.aggregator.status import job_status
from tensorbus.aggregator.worker import Aggregator
from tensorbus.bus.client import Client, Progress
from tensorbus.bus.testing import running_broker
from tensorbus.errors import JobCancelled
from tensorbus.streaming.sources import ItemSource

PROCESS = Path(__file__).with_name("killable_aggregator.py")
PATIENCE = 90.0
"""Seconds that no test here comes near; it turns a hang into a failure."""

SYNC = JobSpec("sft", sites=2, rounds=2, quorum=2, deadline=600, deterministic=True)
BUFFERED = replace(SYNC, mode="buffered", buffer=2, staleness=2)
REGION = replace(SYNC, job="eu", rounds=1000)
WORLD = replace(SYNC, job="world", sites=1, quorum=1)
SPECS = {"sync": SYNC, "buffered": BUFFERED, "region": REGION}

NEW = {"closing", "publishing", "published", "submitting", "submitted", "relaying"}
"""What a paused job does nothing of."""


CHOSEN = {
    "buffered": {"folded", "before-close", "after-close", "publishing", "settled"},
    "region": {"waiting", *NEW} - {"published"},
}
"""Where the other modes are looked at; of rounds of all sites each step is."""


@dataclass(frozen=True)
class Job:
    """A job that is run by a `Stoppable`, and all that belongs to it.

    Attributes:
        answers: its sites. onlooker: one that only reads; ends with the final model.
    """

    bus: Client
    spec: JobSpec
    aggregator: Stoppable
    answers: Answers
    onlooker: asyncio.Task[Arrays]

    async def order(self, action: str) -> None:
        """Give it; it is at the broker when this returns."""
        await give_order(self.bus, self.spec.job, action)  # pyright: ignore[reportArgumentType]

    @property
    def stops(self):
        """Of its aggregator."""
        return self.aggregator.stops


@asynccontextmanager
async def running(folder: Path, mode: str, points: Sequence[Point] = ()) -> AsyncGenerator[Job]:
    """One, on a broker of its own, that stands still at ``points``. A region is the only site above it."""
    spec = SPECS[mode]
    async with (
        asyncio.timeout(PATIENCE),
        running_broker(folder / "broker") as url,
        Client(url) as bus,
        above(folder, mode) as make,
        Stoppable(url, make, points) as aggregator,
    ):
        if mode != "region":
            await bus.publish(seed_topic(spec.job), state(99))
        answers = Answers(bus, replace(spec, rounds=SYNC.rounds))
        tasks = [asyncio.create_task(answers.run()), asyncio.create_task(look_on(bus, spec.job))]
        try:
            yield Job(bus, spec, aggregator, answers, cast("asyncio.Task[Arrays]", tasks[1]))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


@asynccontextmanager
async def above(folder: Path, mode: str) -> AsyncGenerator[Make]:
    """What makes the aggregator; for a region, while the job above runs."""
    spec = SPECS[mode]
    if mode != "region":

        @asynccontextmanager
        async def flat(bus: Client, told: Callable[[Event], None]) -> AsyncGenerator[Aggregator]:
            yield Aggregator(bus, spec, init=None, listener=told, state=folder / "state")

        yield flat
        return
    async with running_broker(folder / "upper") as url, Client(url) as upper:
        await upper.publish(seed_topic("world"), state(99))
        root = asyncio.create_task(Aggregator(upper, WORLD, init=None, listener=lambda _: None).run())

        @asynccontextmanager
        async def below(bus: Client, told: Callable[[Event], None]) -> AsyncGenerator[Aggregator]:
            async with Client(url) as own:  # a client belongs to one event loop
                origin = partial(Region, bus, spec, Parent(own, "world", "eu", folder / "parent"))
                yield Aggregator(bus, spec, init=None, listener=told, state=folder / "state", origin=origin)

        try:
            yield below
        finally:
            root.cancel()
            await asyncio.wait([root])


async def undisturbed(folder: Path, mode: str) -> tuple[list[Point], Arrays]:
    """The points that a run comes to, and its final model."""
    async with running(folder, mode) as job:
        await job.aggregator.result()
        return steps(job.stops.reached, CHOSEN.get(mode)), await job.onlooker


def steps(points: Sequence[Point], names: Collection[str] | None) -> list[Point]:
    """The first one of each of these names, also once the job ends."""
    last = max(at for at, (name, _) in enumerate(points) if name == "closing")
    kinds: dict[tuple[bool, str], Point] = {}
    for at, point in enumerate(points):
        if names is None or point[0] in names:
            kinds.setdefault((at > last, point[0]), point)
    return list(kinds.values())


@pytest.mark.parametrize("mode", SPECS)
async def test_a_job_that_is_paused_at_any_step_does_nothing_new_and_loses_nothing(
    tmp_path: Path, mode: str
) -> None:
    """What was begun to be published is sealed; then nothing is until it is resumed. It comes to the same."""
    points, expected = await undisturbed(tmp_path / "quiet", mode)
    left = points
    for run in range(len(points)):
        async with running(tmp_path / str(run), mode, left) as job:
            paused_at = await pause_again_and_again(job, left)
            await job.aggregator.result()
            same(await job.onlooker, expected)
            nothing_while_paused(job.stops.events)
            if not paused_at or paused_at[-1][0] != "done":  # else the last order came after the end
                assert [info async for info in job.bus.messages(rounds_topic(job.spec.job))] == []
        left = [point for point in left if point not in paused_at]
        if not left:
            return
    pytest.fail(f"it never stood still at {left}")


async def pause_again_and_again(job: Job, points: list[Point]) -> list[Point]:
    """At as many of the points as one run allows; which these were."""
    paused_at: list[Point] = []
    stops = job.stops
    while await job.aggregator.until(lambda: stops.standing):
        paused_at.append(stops.reached[-1])
        newest = await begun(job, stops.reached[-1])
        times = stops.count("paused")
        await job.order("pause")
        stops.go_on()
        if not await job.aggregator.until(lambda times=times: stops.count("paused") > times):
            break  # it had nothing left to do
        await job.answers.at_rest()
        assert max(await last_models(job.bus, job.spec.job, 1), default=0) <= newest, paused_at[-1]
        status = await job_status(job.bus, job.spec.job)
        assert status.state in ("paused", "waiting") and status.publishing is None
        stops.wanted = points
        await job.order("resume")
    return paused_at


async def begun(job: Job, point: Point) -> int:
    """The newest model that is sealed, or on its way to that: a region begins when it receives it."""
    coming = await coming_model(job.bus, job.spec.job)
    newest = max(await last_models(job.bus, job.spec.job, 1), default=0)
    if point[0] in ("publishing", "relaying"):
        return newest + 1  # what was sent of it may still be on its way
    return newest if coming is None else max(newest, coming.round)


def nothing_while_paused(events: list[Event]) -> None:
    """By what the aggregator told."""
    paused = False
    for event in events:
        assert not (paused and event.name in NEW), f"{event} while paused"
        if event.name in ("paused", "continued"):
            paused = event.name == "paused"


@pytest.mark.parametrize("mode", ["sync", "region"])
async def test_a_job_that_is_cancelled_at_any_step_ends_for_everybody(tmp_path: Path, mode: str) -> None:
    """Aggregator, sites, and whoever starts one again hear the same word; only the last model is left. Where
    the order comes when the final model is sealed, the job is done.
    """
    points, _ = await undisturbed(tmp_path / "quiet", mode)
    passed: list[Point] = []
    for at, point in enumerate(points):
        async with running(tmp_path / str(at), mode, [point]) as job:
            if not await job.aggregator.until(lambda job=job: job.stops.standing):
                passed.append(point)  # a region receives and publishes at the same time
                continue
            await job.answers.at_rest()
            final = any(model.final for model in (await last_models(job.bus, job.spec.job, 1)).values())
            await job.order("cancel")
            job.stops.go_on()
            ended = await job.aggregator.outcome()
            if isinstance(ended, GlobalModel):
                assert ended.final and (final or point[0] == "publishing"), point
                assert await job.onlooker
                continue
            assert isinstance(ended, JobCancelled) and not final, (point, ended)
            with pytest.raises(JobCancelled):
                await job.onlooker
            assert job.stops.events[-1].name == "cancelled", point
            await nothing_is_left(job.bus, job.spec.job)
    assert len(passed) <= 2, f"it never came to {passed}"


async def nothing_is_left(bus: Client, job: str) -> None:
    """But the last model and the word that the job was cancelled; nor is there, of a new aggregator."""
    for again in range(2):
        told = [info.headers async for info in bus.messages(model_topic(job))]
        number = told[-1]["round"]
        assert [each["kind"] for each in told] == ["model", "cancelled"][number == 0 :]
        assert [each["round"] for each in told] == [number] * len(told)
        await nothing_comes(bus, job)
        for topic in (rounds_topic(job), claims_topic(job), seed_topic(job)):
            assert [info async for info in bus.messages(topic)] == []
        assert not [each.name for each in await bus.consumers() if "aggregator" in each.name]
        assert (await job_status(bus, job)).state == "cancelled"
        if not again:
            with pytest.raises(JobCancelled):
                await Aggregator(bus, replace(SYNC, job=job), init=None, listener=lambda _: None).run()


async def nothing_comes(bus: Client, job: str) -> None:
    """A site that is sending an update when it hears of the end gives it up."""
    tries = 0
    while coming := await bus.open_messages(f"fl.{job}.>"):
        tries += 1
        assert tries < 200, coming
        await asyncio.sleep(0.05)


# --- killed around it -----------------------------------------------------------------------------------


class Process:
    """The aggregator in a process of its own, that may kill itself; see killable_aggregator.py."""

    def __init__(self, bus: Client, *fatal: str) -> None:
        self._command = [sys.executable, str(PROCESS), bus.url, json.dumps(SYNC.to_json()), *fatal]
        self.events: list[Event] = []

    async def start(self) -> None:
        """Start it."""
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(*self._command, stdout=pipe)

    async def seen(self, name: str) -> bool:
        """Wait until it tells this; False when it has ended before."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            told = json.loads(line)
            if "event" in told:
                self.events.append(Event(told["event"], told))
                if told["event"] == name:
                    return True
        return False

    async def code(self) -> int:
        """Its exit code, when it has ended."""
        await self.seen("")
        return await self._process.wait()


PAUSED_AND_KILLED = [
    ("publishing", "2"),
    ("folded", "1"),
    ("after-close", "1"),
    ("publishing", "1"),
    ("published", "1"),
]


async def test_it_stays_paused_whenever_it_is_killed_and_comes_to_the_same(tmp_path: Path) -> None:
    """Killed, paused while it is dead, started, resumed, killed a little later, and so on."""
    _, expected = await undisturbed(tmp_path / "quiet", "sync")
    async with (
        asyncio.timeout(PATIENCE),
        running_broker(tmp_path / "broker") as url,
        Client(url) as bus,
        asyncio.TaskGroup() as tasks,
    ):
        await bus.publish(seed_topic("sft"), state(99))
        tasks.create_task(Answers(bus, SYNC).run())
        onlooker = tasks.create_task(look_on(bus, "sft"))
        for fatal in [*PAUSED_AND_KILLED, ()]:
            process = Process(bus, *fatal)
            await give_order(bus, "sft", "pause")
            await process.start()
            if await process.seen("paused"):  # it may be killed before it can tell
                await give_order(bus, "sft", "resume")
            assert await process.code() == (-signal.SIGKILL if fatal else 0), f"never killed at {fatal}"
            nothing_while_paused(process.events)
        same(await onlooker, expected)


@pytest.mark.parametrize("point", ["after-cancelled", "cancelled"])
async def test_killed_while_it_cancels_it_goes_on_with_that(tmp_path: Path, point: str) -> None:
    """Whoever starts it again hears that the job was cancelled, and so do the sites."""
    async with asyncio.timeout(PATIENCE), running_broker(tmp_path / "broker") as url, Client(url) as bus:
        await bus.publish(seed_topic("sft"), state(99))
        onlooker = asyncio.create_task(look_on(bus, "sft"))
        process = Process(bus, point, "1")
        await process.start()
        await process.seen("round")
        await submit(bus, "sft", "a", 1, 10)
        await give_order(bus, "sft", "cancel")
        assert await process.code() == -signal.SIGKILL
        with pytest.raises(JobCancelled):
            await Aggregator(bus, SYNC, init=None, listener=lambda _: None).run()
        with pytest.raises(JobCancelled):
            await onlooker
        await nothing_is_left(bus, "sft")
        assert [info async for info in bus.messages("fl.sft.updates")] == []


async def test_an_update_that_is_sent_when_the_job_is_cancelled_ends_at_once(tmp_path: Path) -> None:
    """Half of it is at the broker: nothing stays there, and the site's loop says why it ends."""
    gate, sent = threading.Event(), asyncio.Event()
    gate.set()  # all of it is read once before it is sent

    def told(_: Progress) -> None:
        if not sent.is_set():
            sent.set()
            gate.clear()

    async with asyncio.timeout(PATIENCE), running_broker(tmp_path / "broker") as url, Client(url) as bus:
        await bus.publish(seed_topic("sft"), {"w": np.zeros(COUNT, np.float32)})
        running = asyncio.create_task(Aggregator(bus, SYNC, init=None, listener=lambda _: None).run())
        async with Client(url) as theirs:
            rounds = Participant(theirs, job="sft", site="a", up=told).rounds()
            task = await anext(rounds)
            sending = asyncio.create_task(task.submit(ItemSource("numpy", [Gated(0.0, gate)]), 1))
            await sent.wait()
            await give_order(bus, "sft", "cancel")
            with pytest.raises(JobCancelled):
                await running
            assert await bus.open_messages("fl.sft.>") == []
            gate.set()
            assert await sending is None
            with pytest.raises(JobCancelled):
                await anext(rounds)
        assert [info async for info in bus.messages("fl.sft.updates")] == []
