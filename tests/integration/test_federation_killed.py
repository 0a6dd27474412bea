"""kill -9 of the aggregator, at every point that matters: the final model is the same, bit for bit."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

from tensorbus.aggregator.headers import UpdateHeaders
from tensorbus.aggregator.job import JobSpec, update_key, updates_topic
from tensorbus.aggregator.models import newest_model
from tensorbus.aggregator.participant import Participant
from tensorbus.aggregator.worker import Aggregator
from tensorbus.bus.client import Client
from tensorbus.bus.testing import running_broker
from tensorbus.codecs.pipeline import Pipeline

Arrays = dict[str, npt.NDArray[Any]]

PROCESS = Path(__file__).with_name("killable_aggregator.py")
PATIENCE = 60.0
SITES = {"a": 812.0, "b": 33.0, "c": 5.5}
SPEC = JobSpec("sft", sites=3, rounds=1, quorum=3, deadline=600)


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[Client]:
    """A real broker and a client of it."""
    async with running_broker(tmp_path / "broker") as url, Client(url) as client:
        yield client


def state(seed: int) -> Arrays:
    """Two tensors, one of several slices, and a counter."""
    random = np.random.default_rng(seed)
    return {
        "long": random.normal(size=1_000_000).astype(np.float32),
        "matrix": random.normal(size=(30, 20)).astype(np.float32),
        "steps": np.array(100 + seed),
    }


def offline(updates: list[tuple[Arrays, float]]) -> Arrays:
    """What the aggregator has to come to: fp32 sums in the order of sealing, fp64 for integers."""
    total = sum(weight for _, weight in updates)
    result: Arrays = {}
    for name, first in updates[0][0].items():
        wide = np.float32 if first.dtype == np.float32 else np.float64
        sums = np.zeros(first.shape, wide)
        for update, weight in updates:
            sums += update[name].astype(wide) * wide(weight)
        sums /= wide(total)
        result[name] = sums if first.dtype == np.float32 else np.rint(sums).astype(first.dtype)
    return result


async def start(bus: Client, *arguments: str, spec: JobSpec = SPEC) -> asyncio.subprocess.Process:
    """The aggregator in a process of its own."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        str(PROCESS),
        bus.url,
        json.dumps(spec.to_json()),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
    )


async def events(process: asyncio.subprocess.Process) -> AsyncIterator[dict[str, object]]:
    """What it prints, line by line."""
    assert process.stdout is not None
    async for line in process.stdout:
        yield json.loads(line)


async def submit(bus: Client, site: str, values: Arrays) -> None:
    """A site's update, as a participant sends it."""
    headers = UpdateHeaders(site, 1, SITES[site]).to_headers("sft")
    await bus.publish(updates_topic("sft"), values, headers=headers, key=update_key("sft", 1, site))


@pytest.mark.parametrize(
    ("event", "nth", "point"),
    [
        ("published", 1, "after the first model, before any update"),
        ("folding", 1, "when the fold begins"),
        ("folding", 3, "in the midst of the first update"),
        ("folded", 1, "between two updates"),
        ("folding", 10, "in the midst of the last update"),
        ("folded", 3, "after the fold"),
        ("after-open", 1, "when it is on record that the round is open"),
        ("after-close", 1, "when it is on record of what the model is made"),
        ("publishing", 2, "while the first model is published"),
        ("publishing", 6, "while the final model is published"),
        ("published", 2, "after the model is sealed, before the updates are acknowledged"),
        ("settled", 1, "after the updates are acknowledged"),
        ("done", 1, "at the very end"),
    ],
)
async def test_a_killed_aggregator_comes_to_the_same_model_when_it_is_started_again(
    bus: Client, event: str, nth: int, point: str
) -> None:
    """Whatever was folded, published or acknowledged: each update counts exactly once."""
    updates = {site: state(seed) for seed, site in enumerate(SITES)}
    await bus.publish("fl.sft.seed", state(99))

    first = await start(bus, event, str(nth))
    async for told in events(first):
        if told["event"] == "round":
            assert told["deadline"] == 600
            for site, values in updates.items():
                await submit(bus, site, values)
    assert await first.wait() == -signal.SIGKILL, f"never killed {point}"
    for site, values in updates.items():
        await submit(bus, site, values)  # sites that were cut off try again; the others' keys are known

    model = await Aggregator(bus, SPEC, init=None, listener=lambda event: None).run()
    assert (model.round, model.final) == (2, True)
    got = cast(Arrays, await model.load())
    expected = offline([(updates[site], weight) for site, weight in SITES.items()])
    for name, values in expected.items():
        np.testing.assert_array_equal(got[name], values, err_msg=f"{name}, killed {point}")
    assert [info.headers["round"] async for info in bus.messages("fl.sft.model")] == [1, 2]
    assert [info async for info in bus.messages("fl.sft.updates")] == []
    assert await bus.consumers() == []


async def test_killed_again_and_again_it_still_comes_to_the_same_model(bus: Client) -> None:
    """One job, one kill after another, each a little later than the one before."""
    updates = {site: state(seed) for seed, site in enumerate(SITES)}
    await bus.publish("fl.sft.seed", state(99))
    for event, nth in (("publishing", 1), ("round", 1), ("folding", 2), ("folded", 2), ("publishing", 2)):
        process = await start(bus, event, str(nth))
        told = [entry["event"] async for entry in events(process)]
        assert await process.wait() == -signal.SIGKILL
        if "round" in told:
            for site, values in updates.items():
                await submit(bus, site, values)
    process = await start(bus)
    assert [told async for told in events(process)]
    assert await process.wait() == 0
    model = await newest_model(bus, "sft")
    assert model is not None
    got = cast(Arrays, await model.load())
    for name, values in offline([(updates[site], weight) for site, weight in SITES.items()]).items():
        np.testing.assert_array_equal(got[name], values)


async def model_of_changes(folder: Path, *arguments: str) -> Arrays:
    """The final model of a job whose updates are changes; the aggregator is killed as ``arguments`` say."""
    up, down = Pipeline.parse("delta | int8").to_json(), Pipeline.parse("int8").to_json()
    spec = replace(SPEC, up=up, down=down)
    async with (
        asyncio.timeout(PATIENCE),
        running_broker(folder / "broker") as url,
        Client(url) as bus,
    ):
        await bus.publish("fl.sft.seed", state(99))
        first = await start(bus, *arguments, spec=spec)
        sent: list[asyncio.Task[None]] = []

        async def answer() -> None:
            for seed, (site, weight) in enumerate(SITES.items()):
                task = await anext(Participant(bus, job="sft", site=site, state=folder / "state").rounds())
                model = cast(Arrays, await task.load())
                # The first third of the long tensor is trained, the rest of it is as it was.
                model["long"][: 300_000 + seed] = state(seed)["long"][: 300_000 + seed]
                await task.submit(model, weight)

        async for told in events(first):
            if told.get("event") == "round" and not sent:
                sent.append(asyncio.create_task(answer()))
        assert await first.wait() == (-signal.SIGKILL if arguments else 0)
        await asyncio.gather(*sent)
        model = await Aggregator(bus, spec, init=None, listener=lambda event: None).run()
        assert (model.round, model.final) == (2, True)
        return cast(Arrays, await model.load())


@pytest.mark.parametrize(
    ("event", "nth", "point"),
    [
        ("folding", 3, "in the midst of the first change"),
        ("folded", 2, "between two changes"),
        ("closing", 1, "before the round's model is added"),
        ("publishing", 4, "after it was added"),
        ("published", 2, "before the changes are acknowledged"),
    ],
)
async def test_the_base_of_changes_is_added_once_whenever_the_aggregator_is_killed(
    tmp_path: Path, event: str, nth: int, point: str
) -> None:
    """The same bits as without a kill."""
    expected = await model_of_changes(tmp_path / "quiet")
    got = await model_of_changes(tmp_path / "killed", event, str(nth))
    for name, values in expected.items():
        np.testing.assert_array_equal(got[name], values, err_msg=f"{name}, killed {point}")
