"""Trees: regions sum before they send, and the federation comes to the same model."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

from tensorbus.aggregator import region
from tensorbus.aggregator.control import give_order
from tensorbus.aggregator.events import Event
from tensorbus.aggregator.headers import UpdateHeaders
from tensorbus.aggregator.job import JobSpec, update_key, updates_topic
from tensorbus.aggregator.models import last_models
from tensorbus.aggregator.participant import Participant
from tensorbus.aggregator.region import Parent, Region
from tensorbus.aggregator.worker import Aggregator
from tensorbus.bus.client import Client
from tensorbus.bus.testing import running_broker
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.errors import InvalidSpecification, JobCancelled

Arrays = dict[str, npt.NDArray[Any]]
Tree = Mapping[str, "Tree | float"]
"""Regions and what is in them; a site has its number of examples."""

PROCESS = Path(__file__).with_name("killable_region.py")
PATIENCE = 90.0
"""Seconds that no test here comes near; it turns a hang into a failure."""

FLAT: dict[str, float] = {"a": 812.0, "b": 33.0, "c": 5.5, "d": 100.0, "e": 7.25}
TWO: Tree = {"eu": {"a": 812.0, "b": 33.0, "c": 5.5}, "us": {"d": 100.0, "e": 7.25}}
THREE: Tree = {"eu": {"north": {"a": 812.0, "b": 33.0}, "south": {"c": 5.5}}, "us": {"d": 100.0}, "e": 7.25}


def seed() -> Arrays:
    """A tensor of several slices, a small one, one that nobody trains, and a counter."""
    random = np.random.default_rng(99)
    return {
        "long": random.normal(size=600_000).astype(np.float32),
        "matrix": random.normal(size=(30, 20)).astype(np.float32),
        "frozen": random.normal(size=100).astype(np.float32),
        "steps": np.array(100),
    }


def trained(site: str, number: int, model: Arrays) -> Arrays:
    """What a site makes of a round's model; some send only a part of it."""
    random = np.random.default_rng([number, *site.encode()])
    update: Arrays = {"matrix": model["matrix"] + random.normal(size=(30, 20)).astype(np.float32)}
    if site != "b":
        count = len(model["long"])
        update["long"] = model["long"] + (random.normal(size=count) * 1e-3).astype(np.float32)
        update["steps"] = model["steps"] + random.integers(1, 9)
    return update


@dataclass
class Federation:
    """A tree at work, each of its aggregators on a broker of its own.

    Attributes:
        spec: of the topmost job; the others have the same but for their names and numbers of sites.
        models: what each site got in each round.
        events: of each job.
    """

    folder: Path
    spec: JobSpec
    train: Callable[[str, int, Arrays], Arrays] = trained
    stack: AsyncExitStack | None = None

    def __post_init__(self) -> None:
        self.models: dict[tuple[str, int], Arrays] = {}
        self.events: dict[str, list[Event]] = {}

    async def run(self, tree: Tree) -> Arrays:
        """The final model."""
        async with asyncio.timeout(PATIENCE), AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
            self.stack = stack
            bus = await self.bus("world")
            await bus.publish(f"fl.{self.spec.job}.seed", seed())
            root = tasks.create_task(self.aggregate(bus, replace(self.spec, sites=len(tree)), None))
            await self.plant(tasks, bus, self.spec.job, tree)
            await root
            [model] = (await last_models(bus, self.spec.job, 1)).values()
            assert model.final
            return cast(Arrays, await model.load())

    async def bus(self, name: str) -> Client:
        """A client of a new broker."""
        assert self.stack is not None
        url = await self.stack.enter_async_context(running_broker(self.folder / f"broker-{name}"))
        return await self.stack.enter_async_context(Client(url))

    async def plant(self, tasks: asyncio.TaskGroup, above: Client, job: str, tree: Tree) -> None:
        """Start what takes part in ``job``."""
        for name, below in tree.items():
            if not isinstance(below, Mapping):
                tasks.create_task(self.take_part(above, job, name, below))
                continue
            bus = await self.bus(name)
            spec = replace(self.spec, job=name, sites=len(below), reducer="mean", rounds=1000)
            tasks.create_task(self.aggregate(bus, spec, Parent(above, job, name, self.folder / "state")))
            await self.plant(tasks, bus, name, below)

    async def aggregate(self, bus: Client, spec: JobSpec, parent: Parent | None) -> None:
        """One aggregator."""
        events = self.events.setdefault(spec.job, [])
        origin = None if parent is None else partial(Region, bus, spec, parent)
        state = self.folder / "state"
        aggregator = Aggregator(bus, spec, init=None, listener=events.append, state=state, origin=origin)
        await aggregator.run()

    async def take_part(self, bus: Client, job: str, site: str, examples: float) -> None:
        """One site."""
        participant = Participant(bus, job=job, site=site, state=self.folder / "state")
        async for task in participant.rounds():
            model = cast(Arrays, await task.load())
            self.models[site, task.round] = model
            update = self.train(site, task.round, dict(model))
            assert await task.submit(update, examples, {"loss": 1 / examples})


def spec(**change: Any) -> JobSpec:
    """Two rounds of a deterministic job, whose quorum is everybody."""
    return replace(
        JobSpec("world", sites=1, rounds=2, quorum="100%", deadline=600, deterministic=True), **change
    )


def same(first: Arrays, second: Arrays) -> None:
    """Bit for bit."""
    assert list(first) == list(second)
    for name, values in first.items():
        assert values.dtype == second[name].dtype
        assert values.tobytes() == second[name].tobytes(), name


@pytest.mark.parametrize(
    ("down", "up", "reducer"),
    [
        ("none", "none", "mean"),
        ("nf4", "delta | nf4", "mean"),
        ("nf4", "none", "fedadam:lr=0.01"),
    ],
)
async def test_a_tree_comes_to_the_same_bits_as_the_flat_federation(
    tmp_path: Path, down: str, up: str, reducer: str
) -> None:
    """Two levels and three, of regions that weigh differently, with updates that hold only a part."""
    job = spec(down=Pipeline.parse(down).to_json(), up=Pipeline.parse(up).to_json(), reducer=reducer)
    flat = Federation(tmp_path / "flat", job)
    expected = await flat.run(FLAT)
    for name, tree in {"two": TWO, "three": THREE}.items():
        federation = Federation(tmp_path / name, job)
        same(await federation.run(tree), expected)
        # What a site gets through one region, or two, is what it gets from the top.
        assert sorted(federation.models) == sorted(flat.models)
        for key, model in flat.models.items():
            same(federation.models[key], model)
        told = {event.name for event in federation.events["eu"]}
        assert {"relaying", "submitted", "settled", "done"} <= told
    if down == "none":  # what nobody trains stays as it is
        assert expected["frozen"].tobytes() == seed()["frozen"].tobytes()


async def test_without_determinism_it_comes_to_the_same_but_for_rounding(tmp_path: Path) -> None:
    """Means of means, each weighing what its sites weigh together."""

    def whole(site: str, number: int, model: Arrays) -> Arrays:
        return model | trained(site, number, model) if site != "b" else model

    job = spec(deterministic=False)
    expected = await Federation(tmp_path / "flat", job, whole).run(FLAT)
    for name, tree in {"two": TWO, "three": THREE}.items():
        got = await Federation(tmp_path / name, job, whole).run(tree)
        for tensor in ("long", "matrix", "frozen"):
            np.testing.assert_allclose(got[tensor], expected[tensor], rtol=1e-5, atol=1e-6)


async def test_a_straggler_is_left_behind_in_its_region_only(tmp_path: Path) -> None:
    """A region's quorum closes its round; the sum is that of the sites that were in time."""
    job = spec(rounds=1, quorum=1, deadline=1.0)
    late = asyncio.Event()

    class Late(Federation):
        async def take_part(self, bus: Client, job: str, site: str, examples: float) -> None:
            if site == "b":
                await late.wait()
            await super().take_part(bus, job, site, examples)

        async def aggregate(self, bus: Client, spec: JobSpec, parent: Parent | None) -> None:
            if parent is None:  # the top waits for all of its regions
                spec = replace(spec, quorum="100%", deadline=600)
            await super().aggregate(bus, spec, parent)
            if spec.job == "eu":
                late.set()

    got = await Late(tmp_path / "tree", job).run({"eu": {"a": 812.0, "b": 33.0}, "us": {"d": 100.0}})
    expected = await Federation(tmp_path / "flat", spec(rounds=1)).run({"a": 812.0, "d": 100.0})
    same(got, expected)


# --- killed ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A root's broker and a region's."""

    upper: Client
    lower: Client
    folder: Path

    async def start(self, *fatal: str, job: JobSpec) -> asyncio.subprocess.Process:
        """The region in a process of its own."""
        lower = replace(job, job="eu", sites=2, rounds=1000)
        given = (self.lower.url, json.dumps(lower.to_json()), self.upper.url, "world", "eu")
        return await asyncio.create_subprocess_exec(
            sys.executable,
            str(PROCESS),
            *given,
            str(self.folder / "state"),
            *fatal,
            stdout=asyncio.subprocess.PIPE,
        )


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


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    """The final model of the flat federation."""
    folder = tmp_path_factory.mktemp("flat")
    return asyncio.run(Federation(folder, spec()).run({"a": 812.0, "b": 33.0, "d": 100.0}))


@pytest.mark.parametrize(
    ("event", "nth", "point"),
    [
        ("relaying", 1, "while the first model is downloaded"),
        ("publishing", 1, "while it is passed on"),
        ("published", 1, "after it is sealed below"),
        ("folded", 1, "between two updates"),
        ("after-close", 1, "when it is on record of what the sum is made"),
        ("submitting", 1, "while the sums are sent"),
        ("submitted", 1, "when they are sealed above, before the next model"),
        ("publishing", 3, "while the second model is passed on"),
        ("settled", 1, "after the updates are acknowledged"),
        ("published", 3, "when the final model is sealed below"),
    ],
)
async def test_a_killed_region_goes_on_to_the_same_model(
    pair: Pair, undisturbed: Arrays, event: str, nth: int, point: str
) -> None:
    """Whatever was passed on, summed or sent: each update counts exactly once, in two rounds."""
    federation = Federation(pair.folder, spec())
    examples = {"eu": 845.0, "world": 945.0}
    await pair.upper.publish("fl.world.seed", seed())
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(federation.aggregate(pair.upper, spec(sites=2), None))
        tasks.create_task(federation.take_part(pair.upper, "world", "d", 100.0))
        tasks.create_task(federation.take_part(pair.lower, "eu", "a", 812.0))
        tasks.create_task(federation.take_part(pair.lower, "eu", "b", 33.0))
        process = await pair.start(event, str(nth), job=spec())
        await process.communicate()
        assert process.returncode == -signal.SIGKILL, f"never killed {point}"
        process = await pair.start(job=spec())
        await process.communicate()
        assert process.returncode == 0
    for bus, job in ((pair.upper, "world"), (pair.lower, "eu")):
        [model] = (await last_models(bus, job, 1)).values()
        assert (model.round, model.final) == (3, True)
        same(cast(Arrays, await model.load()), undisturbed)
        told = json.loads(model.headers.history or "[]")
        assert [(number, updates) for number, updates, _ in told] == [(1, 2), (2, 2)]
        # Σ examples · loss is 1 for each site, and for a region so many times its examples.
        assert told[-1][2]["loss"] == pytest.approx((2 if job == "eu" else 3) / examples[job], rel=1e-4)
        assert [info async for info in bus.messages(updates_topic(job))] == []
        assert await bus.consumers() == []
    assert not any((pair.folder / "state").rglob("*.frames"))


async def test_the_memory_of_a_region_does_not_follow_the_model(pair: Pair) -> None:
    """A model of 160 MiB is passed on, summed and sent: beside the sums it takes little."""
    job = spec(rounds=1, deterministic=False)
    count = 40 << 20
    await pair.upper.publish("fl.world.seed", {"w": np.zeros(count, np.float32)})
    federation = Federation(pair.folder, job, lambda site, number, model: {"w": model["w"] + np.float32(1)})
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(federation.aggregate(pair.upper, replace(job, sites=1), None))
        process = await pair.start(job=job)
        for site in ("a", "b"):
            tasks.create_task(federation.take_part(pair.lower, "eu", site, 10.0))
        told, _ = await process.communicate()
    assert process.returncode == 0
    sizes = json.loads(told.splitlines()[-1])
    assert sizes["peak"] - sizes["resting"] < 4 * count + (48 << 20)
    assert sizes["resting"] < 4 * count + (160 << 20)


# --- what does not go well ------------------------------------------------------------------------------


@pytest.mark.parametrize("answered", [False, True])
async def test_cancelled_above_is_cancelled_below(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, answered: bool
) -> None:
    """Whether the region waits for its sites or for the job above: the sites hear of it."""
    monkeypatch.setattr(region, "LOOK", 0.1)
    job = spec(sites=2)
    await pair.upper.publish("fl.world.seed", seed())
    events: list[Event] = []
    below = replace(job, job="eu", sites=1 if answered else 2)
    origin = partial(Region, pair.lower, below, Parent(pair.upper, "world", "eu", pair.folder / "s"))
    root = Aggregator(pair.upper, job, init=None, listener=events.append)
    middle = Aggregator(pair.lower, below, init=None, listener=events.append, origin=origin)
    federation = Federation(pair.folder, job)
    running: list[asyncio.Task[Any]] = [
        asyncio.create_task(root.run()),
        asyncio.create_task(middle.run()),
        asyncio.create_task(federation.take_part(pair.lower, "eu", "a", 5.0)),
    ]
    while not any(event.name == ("submitted" if answered else "folded") for event in events):
        await asyncio.sleep(0.02)
    await give_order(pair.upper, "world", "cancel")
    await asyncio.wait(running)
    assert [type(task.exception()) for task in running] == [JobCancelled] * 3


async def test_a_region_that_is_cancelled_leaves_the_job_above(pair: Pair) -> None:
    """The others go on without it."""
    job = spec(sites=2, rounds=1)
    await pair.upper.publish("fl.world.seed", seed())
    below = replace(job, job="eu", sites=2)
    origin = partial(Region, pair.lower, below, Parent(pair.upper, "world", "eu", pair.folder / "s"))
    federation = Federation(pair.folder, job)
    events: list[Event] = []
    middle = Aggregator(pair.lower, below, init=None, listener=events.append, origin=origin)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(federation.aggregate(pair.upper, job, None))
        tasks.create_task(federation.take_part(pair.upper, "world", "d", 3.0))
        working = asyncio.create_task(middle.run())
        while not any(event.name == "round" for event in events):
            await asyncio.sleep(0.02)
        await give_order(pair.lower, "eu", "cancel")
        with pytest.raises(JobCancelled):
            await working
    names = [event.name for event in federation.events["world"]]
    assert "declined" in names and names[-1] == "done"


async def test_sums_are_refused_where_they_cannot_be_used(pair: Pair) -> None:
    """By a job that clips each update, and by one that is not deterministic; the error says why."""
    for number, change in enumerate(({"reducer": "clip:1.0 | mean"}, {"deterministic": False})):
        job = replace(spec(sites=1, rounds=1, **change), job=f"job{number}")
        events: list[Event] = []
        refused = asyncio.Event()

        def heard(event: Event, events: list[Event] = events, refused: asyncio.Event = refused) -> None:
            events.append(event)
            if event.name == "refused":
                refused.set()

        await pair.upper.publish(f"fl.{job.job}.seed", {"w": np.zeros(3, np.float32)})
        task = asyncio.create_task(Aggregator(pair.upper, job, init=None, listener=heard).run())
        headers = UpdateHeaders("eu", 1, 5.0, partial=True).to_headers(job.job)
        await pair.upper.publish(
            updates_topic(job.job),
            {"w": np.zeros((3, 2), np.int64)},
            headers=headers,
            key=update_key(job.job, 1, "eu"),
        )
        await refused.wait()
        task.cancel()
        await asyncio.wait([task])
        [reason] = [event.fields["reason"] for event in events if event.name == "refused"]
        assert "sums of a region" in str(reason)


@pytest.mark.parametrize(
    ("above", "below", "message"),
    [
        ({}, {"deterministic": False}, "its regions have to be"),
        ({"reducer": "clip:1.0 | mean"}, {}, "have the regions do it"),
        ({"up": {"quantizer": "none", "skip": ["bias*"]}}, {}, "have the regions' sites do it"),
        ({}, {"staleness": 1}, "--staleness has to be 0"),
        ({}, {"reducer": "median"}, "its reducer is the mean, not median"),
        ({}, {"reducer": "mean | fedavgm"}, "its reducer is the mean, not mean | fedavgm"),
        ({}, {"job": "world"}, "cannot be its own parent"),
    ],
)
async def test_a_region_that_cannot_work_says_so(
    pair: Pair, above: dict[str, Any], below: dict[str, Any], message: str
) -> None:
    """Before anything is published."""
    upper = spec(**above)
    await pair.upper.publish("fl.world.seed", {"w": np.zeros(3, np.float32)})
    root = asyncio.create_task(Aggregator(pair.upper, upper, init=None, listener=lambda event: None).run())
    lower = replace(spec(job="eu"), **below)
    bus = pair.upper if lower.job == "world" else pair.lower

    async def run() -> None:
        origin = partial(Region, bus, lower, Parent(pair.upper, "world", "eu", pair.folder / "s"))
        await Aggregator(bus, lower, init=None, listener=lambda event: None, origin=origin).run()

    with pytest.raises(InvalidSpecification, match=message.replace("|", r"\|")):
        await run()
    root.cancel()
    await asyncio.wait([root])
    assert {info.topic async for info in pair.lower.messages()} <= {"fl.eu.claims"}


async def test_the_command_runs_a_region(pair: Pair) -> None:
    """It takes its rounds from its parent, and refuses options that are the parent's."""
    job = spec()
    await pair.upper.publish("fl.world.seed", seed())
    command = [sys.executable, "-m", "tensorbus", "aggregate", "--url", pair.lower.url, "--job", "eu"]
    command += [
        "--sites",
        "1",
        "--parent",
        "world",
        "--parent-url",
        pair.upper.url,
        "--deterministic",
        "--json",
    ]
    pipe = asyncio.subprocess.PIPE
    federation = Federation(pair.folder, job)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(federation.aggregate(pair.upper, job, None))
        tasks.create_task(federation.take_part(pair.lower, "eu", "a", 5.0))
        process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
    told = [json.loads(line) for line in out.splitlines()]
    assert [event["rounds"] for event in told if event["event"] == "round"] == [2, 2]
    assert [event["exact"] for event in told if event["event"] == "submitted"] == [True, True]
    refused = await asyncio.create_subprocess_exec(*command, "--rounds", "3", stdout=pipe, stderr=pipe)
    assert "are its parent's" in (await refused.communicate())[1].decode()
    assert refused.returncode == 2
