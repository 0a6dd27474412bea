"""Restarts where more than the newest model matters: rosters, late updates, optimisers, deadlines."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

from tensorbus.aggregator.events import Event
from tensorbus.aggregator.headers import UpdateHeaders
from tensorbus.aggregator.job import JobSpec, rounds_topic, update_key, updates_topic
from tensorbus.aggregator.models import last_models, newest_model
from tensorbus.aggregator.records import Records, Roster
from tensorbus.aggregator.worker import Aggregator
from tensorbus.bus.client import Client
from tensorbus.bus.testing import running_broker

Arrays = dict[str, npt.NDArray[Any]]

PROCESS = Path(__file__).with_name("killable_aggregator.py")
PATIENCE = 90.0
SPEC = JobSpec("sft", sites=2, rounds=4, quorum=2, deadline=600)
BUFFERED = replace(SPEC, mode="buffered", buffer=2, staleness=2)


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[Client]:
    """A real broker and a client of it."""
    async with running_broker(tmp_path / "broker") as url, Client(url) as client:
        yield client


def state(seed: int) -> Arrays:
    """Two tensors, one of several slices."""
    values = np.random.default_rng(seed)
    return {
        "long": values.normal(size=400_000).astype(np.float32),
        "matrix": values.normal(size=(30, 20)).astype(np.float32),
    }


async def submit(bus: Client, site: str, number: int, seed: int, examples: float = 8) -> None:
    """A site's update to a round, as a participant sends it."""
    headers = UpdateHeaders(site, number, examples).to_headers("sft")
    key = update_key("sft", number, site)
    await bus.publish(updates_topic("sft"), state(seed), headers=headers, key=key)


async def start(
    bus: Client, spec: JobSpec, *arguments: str, state: Path | None = None
) -> asyncio.subprocess.Process:
    """The aggregator in a process of its own."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        str(PROCESS),
        bus.url,
        json.dumps(spec.to_json()),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        env={"PATH": "", **({} if state is None else {"TENSORBUS_STATE": str(state)})},
    )


async def until_model(bus: Client, number: int) -> None:
    """Wait until the model of a round is sealed."""
    while (model := await newest_model(bus, "sft")) is None or model.round < number:
        await asyncio.sleep(0.02)


async def answers(bus: Client, spec: JobSpec) -> None:
    """All updates of the job, each as soon as its round is open, in an order that is the same each time.

    In buffered mode one site is a round behind from the second round on.
    """
    for number in range(1, spec.rounds + 1):
        await until_model(bus, number)
        await submit(bus, "a", number, 10 * number)
        late = spec.mode == "buffered" and number > 1
        await submit(bus, "b", number - 1 if late else number, 10 * number + 1, 33)
        if number == 1 and spec.mode == "buffered":
            await submit(bus, "c", 1, 15)  # it is one too many, and a round late


async def final_model(bus: Client) -> Arrays:
    """What the job came to."""
    model = await newest_model(bus, "sft")
    assert model is not None
    assert model.final
    return cast(Arrays, await model.load())


async def run(folder: Path, spec: JobSpec, *kills: tuple[str, str], seed: int | None = None) -> Arrays:
    """The final model of a job whose aggregator is killed at these points, or, with a seed, at any time."""
    lasting = folder / "state"
    async with (
        asyncio.timeout(PATIENCE),
        running_broker(folder / "broker") as url,
        Client(url) as bus,
    ):
        await bus.publish("fl.sft.seed", state(99))
        sending = asyncio.create_task(answers(bus, spec))
        for kill in kills:
            process = await start(bus, spec, *kill, state=lasting)
            await process.communicate()
            assert process.returncode == -signal.SIGKILL, f"never killed at {kill}"
        chance = random.Random(seed)
        process = await start(bus, spec, state=lasting)
        for _ in range(0 if seed is None else 6):
            try:
                async with asyncio.timeout(chance.uniform(0.3, 1.0)):
                    await process.communicate()
                break
            except TimeoutError:
                process.kill()
                await process.wait()
                process = await start(bus, spec, state=lasting)
        await process.communicate()
        assert process.returncode == 0
        await sending
        assert [info async for info in bus.messages(rounds_topic("sft"))] == []
        assert [info async for info in bus.messages(updates_topic("sft"))] == []
        assert await bus.consumers() == []
        return await final_model(bus)


KILLS: dict[str, list[tuple[str, str]]] = {
    "before and after decisions": [
        ("before-open", "2"),
        ("after-open", "1"),
        ("before-close", "1"),
        ("after-close", "1"),
        ("closing", "1"),
    ],
    "while models are made and sealed": [
        ("publishing", "4"),
        ("published", "1"),
        ("settled", "1"),
        ("folding", "2"),
    ],
}


@pytest.mark.parametrize("kills", KILLS)
@pytest.mark.parametrize(
    "spec", [SPEC, BUFFERED, replace(SPEC, reducer="fedadam:lr=0.1")], ids=["sync", "buffered", "fedadam"]
)
async def test_whenever_it_is_killed_the_job_comes_to_the_same_model(
    tmp_path: Path, spec: JobSpec, kills: str
) -> None:
    """Each update counts once, each decision stands, and an optimiser takes each step once."""
    expected = await run(tmp_path / "quiet", spec)
    got = await run(tmp_path / "killed", spec, *KILLS[kills])
    for name, values in expected.items():
        np.testing.assert_array_equal(got[name], values, err_msg=name)


@pytest.mark.parametrize("seed", [1, 2])
async def test_killed_at_any_time_it_comes_to_the_same_model(tmp_path: Path, seed: int) -> None:
    """Six kills at moments that nobody chose."""
    expected = await run(tmp_path / "quiet", BUFFERED)
    got = await run(tmp_path / "killed", BUFFERED, seed=seed)
    for name, values in expected.items():
        np.testing.assert_array_equal(got[name], values, err_msg=name)


async def test_a_closed_round_is_made_of_its_roster_whatever_came_since(bus: Client) -> None:
    """The quorum closed it; the straggler's update, sealed while the aggregator was dead, comes too late."""
    spec = replace(SPEC, rounds=1, quorum=1, deadline=0.2)
    await bus.publish("fl.sft.seed", state(99))
    process = await start(bus, spec, "after-close", "1")
    async with asyncio.timeout(PATIENCE):
        await until_model(bus, 1)
        await submit(bus, "a", 1, 1)
        await process.communicate()
        assert process.returncode == -signal.SIGKILL
        await submit(bus, "b", 1, 2)
        told: list[Event] = []
        await Aggregator(bus, spec, init=None, listener=told.append).run()
    for name, values in (await final_model(bus)).items():
        np.testing.assert_array_equal(values, state(1)[name])
    assert [event.fields["sites"] for event in told if event.name == "closing"] == [["a"]]


async def test_the_decision_of_an_aggregator_that_was_quicker_stands(bus: Client) -> None:
    """Two of them closed the round with other updates; there is one record, and one model."""
    spec = replace(SPEC, rounds=1)
    await bus.publish("fl.sft.seed", state(99))
    opened = asyncio.Event()

    def told(event: Event) -> None:
        if event.name == "round":
            opened.set()

    async with asyncio.timeout(PATIENCE):
        job = asyncio.create_task(Aggregator(bus, spec, init=None, listener=told).run())
        await opened.wait()
        await submit(bus, "b", 1, 2)
        (update,) = [info async for info in bus.messages(updates_topic("sft"))]
        decided = {"updates": [[update.id, "b", 1, 8.0]], "left": []}
        await Records(bus, "sft").close(Roster.parse(1, 1, json.dumps(decided).encode()))
        await submit(bus, "a", 1, 1)
        await job
    for name, values in (await final_model(bus)).items():
        np.testing.assert_array_equal(values, state(2)[name])


async def test_a_roster_of_which_an_update_is_gone_is_superseded(bus: Client) -> None:
    """The round is open again, and closes without it once somebody else is in."""
    spec = replace(SPEC, rounds=1)
    await bus.publish("fl.sft.seed", state(99))
    process = await start(bus, spec, "after-close", "1")
    told: list[Event] = []
    async with asyncio.timeout(PATIENCE):
        await until_model(bus, 1)
        await submit(bus, "a", 1, 1)
        await submit(bus, "b", 1, 2)
        await process.communicate()
        async for info in bus.messages(updates_topic("sft")):
            if info.headers["site"] == "b":
                await bus.delete(info.id)
        job = asyncio.create_task(Aggregator(bus, spec, init=None, listener=told.append).run())
        while not any(event.name == "refused" for event in told):
            await asyncio.sleep(0.01)
        await submit(bus, "c", 1, 1)
        await job
    for name, values in (await final_model(bus)).items():
        np.testing.assert_allclose(values, state(1)[name], rtol=1e-6)
    assert [event.fields["sites"] for event in told if event.name == "closing"] == [["a", "c"]]


async def test_a_roster_that_a_new_reducer_cannot_do_with_is_superseded(bus: Client) -> None:
    """The restart asks for Krum, which needs five; the round is open again until there are so many."""
    spec = replace(SPEC, rounds=1)
    await bus.publish("fl.sft.seed", state(99))
    process = await start(bus, spec, "after-close", "1")
    told: list[Event] = []
    async with asyncio.timeout(PATIENCE):
        await until_model(bus, 1)
        await submit(bus, "a", 1, 1)
        await submit(bus, "b", 1, 1)
        await process.communicate()
        krum = replace(spec, sites=5, quorum=5, reducer="krum:1")
        job = asyncio.create_task(Aggregator(bus, krum, init=None, listener=told.append).run())
        while not any(event.name == "reopened" for event in told):
            assert not job.done()
            await asyncio.sleep(0.01)
        for site in ("c", "d", "e"):
            await submit(bus, site, 1, 1)
        await job
    for name, values in (await final_model(bus)).items():
        np.testing.assert_allclose(values, state(1)[name], rtol=1e-6)
    closed = [event.fields["updates"] for event in told if event.name == "closing"]
    assert closed == [2, 5]


async def test_a_restart_does_not_begin_the_deadline_anew(bus: Client) -> None:
    """The round was open for longer than its deadline when the aggregator was killed."""
    spec = replace(SPEC, rounds=1, quorum=1, deadline=3.0)
    await bus.publish("fl.sft.seed", state(99))
    process = await start(bus, spec, "folded", "1")
    async with asyncio.timeout(PATIENCE):
        await until_model(bus, 1)
        await submit(bus, "a", 1, 1)
        await process.communicate()
        (began,) = (await Records(bus, "sft").read()).opened.values()
        told: list[Event] = []
        await Aggregator(bus, spec, init=None, listener=told.append).run()
        (closing,) = [event for event in told if event.name == "closing"]
        opened = next(event for event in told if event.name == "round")
    # Of the deadline, what had passed before the restart had passed.
    assert (closing.time - opened.time).total_seconds() < 3.0 - (opened.time.timestamp() - began) + 1.0


async def test_after_many_rounds_the_broker_holds_the_records_of_the_last_ones_only(bus: Client) -> None:
    """Listings cost the same in round 10,000 as in round 2."""
    spec = replace(SPEC, sites=1, quorum=1, rounds=12)
    await bus.publish("fl.sft.seed", {"w": np.zeros(3, np.float32)})
    most = 0
    async with asyncio.timeout(PATIENCE):
        job = asyncio.create_task(Aggregator(bus, spec, init=None, listener=lambda _: None).run())
        for number in range(1, 13):
            await until_model(bus, number)
            headers = UpdateHeaders("a", number, 1).to_headers("sft")
            key = update_key("sft", number, "a")
            await bus.publish(
                updates_topic("sft"), {"w": np.full(3, number, np.float32)}, headers=headers, key=key
            )
            records = [info async for info in bus.messages(rounds_topic("sft"))]
            most = max(most, len(records))
        await job
    assert 2 <= most <= 8
    assert list(await last_models(bus, "sft", 9)) == [13, 12]
