"""Federations that send changes: what sites submit, what the aggregator makes of it, what is kept on disk."""

# safetensors leaves parts of its functions untyped.
# pyright: reportUnknownVariableType=false

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file

from tensorbus.aggregator.arriving import Arriving
from tensorbus.aggregator.events import Event
from tensorbus.aggregator.job import JobSpec
from tensorbus.aggregator.models import GlobalModel
from tensorbus.aggregator.participant import Participant, Task
from tensorbus.aggregator.state_folder import StateFolder
from tensorbus.aggregator.worker import Aggregator
from tensorbus.bus.client import Client
from tensorbus.bus.testing import running_broker
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.errors import MissingBase
from tensorbus.streaming.base_files import open_base

Arrays = dict[str, npt.NDArray[Any]]
PATIENCE = 60.0
SITES = {"a": 812.0, "b": 33.0, "c": 5.5}


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """A real broker."""
    async with running_broker(tmp_path / "broker") as address:
        yield address


@pytest.fixture
async def bus(url: str) -> AsyncIterator[Client]:
    """A client of it."""
    async with Client(url) as client:
        yield client


def spec(up: str, down: str = "none", **change: Any) -> JobSpec:
    """One round of three sites."""
    pipelines = {"up": Pipeline.parse(up).to_json(), "down": Pipeline.parse(down).to_json()}
    return replace(JobSpec("sft", sites=3, rounds=1, quorum=3, deadline=600), **pipelines, **change)


def state(seed: int) -> Arrays:
    """Tensors of several slices and of one, a counter, and a tensor that no training touches."""
    random = np.random.default_rng(seed)
    return {
        "long": random.normal(size=2_500_000).astype(np.float32),
        "matrix": random.normal(size=(300, 20)).astype(np.float32),
        "half": random.normal(size=5_000).astype(np.float16),
        "steps": np.array(100 + seed),
    }


def trained(model: Arrays, seed: int) -> Arrays:
    """``model`` after a little training."""
    random = np.random.default_rng(seed)
    return {
        name: value + (0.01 * random.normal(size=value.shape)).astype(value.dtype)
        if value.dtype.kind == "f"
        else value + 1
        for name, value in model.items()
    }


def arrays(container: object) -> Arrays:
    """A container as arrays; a model that came from a file is one of torch."""
    values = cast("dict[str, Any]", container)
    return {
        name: cast(Any, value if isinstance(value, str) else np.asarray(value))
        for name, value in values.items()
    }


def aggregate(
    bus: Client,
    job: JobSpec,
    told: list[Event] | None = None,
    init: Path | None = None,
    state: Path | None = None,
) -> asyncio.Task[GlobalModel]:
    """An aggregator in this process."""
    events = [] if told is None else told
    return asyncio.create_task(Aggregator(bus, job, init=init, listener=events.append, state=state).run())


async def join(bus: Client, site: str, root: Path | None = None, base: object | None = None) -> Task:
    """The open round's task of a site."""
    return await anext(Participant(bus, job="sft", site=site, state=root, base=base).rounds())


async def as_decoded(bus: Client, update: Arrays, codec: str, base: Arrays, base_id: str) -> Arrays:
    """What a receiver makes of an update that is sent with ``codec``."""
    known = open_base(base, base_id)
    bus.add_base(known)
    receipt = await bus.publish("check.update", update, codec=codec, base=known)
    return arrays(await (await bus.fetch(receipt.id)).load())


def mean_of(updates: dict[str, Arrays]) -> Arrays:
    """The weighted mean in fp64, rounded where the model's dtype is an integer."""
    total = sum(SITES.values())
    means: Arrays = {}
    for name, first in updates["a"].items():
        sums = sum(np.float64(SITES[site]) * update[name] for site, update in updates.items())
        means[name] = np.asarray(np.rint(sums / total) if first.dtype.kind == "i" else sums / total)
    return means


ROUNDING = {"float32": 3e-6, "float16": 5e-3, "int64": 0}


def share_unlike(got: Arrays, expected: Arrays) -> float:
    """Share of the values that differ by more than the rounding of their dtype, in the worst tensor."""
    return max(
        float(np.mean(np.abs(value - expected[name]) > ROUNDING[value.dtype.name]))
        for name, value in got.items()
    )


@pytest.mark.parametrize("down", ["none", "nf4"])
@pytest.mark.parametrize(
    "up", ["delta | nf4", "delta | none", "delta | rotate | int8", "same | none", "mixed"]
)
async def test_the_mean_of_changes_is_the_change_of_the_mean(
    bus: Client, tmp_path: Path, up: str, down: str
) -> None:
    """The final model is the mean of the updates as anyone decodes them, computed offline; so too where one
    site sends values and the others changes, and where models lose bits on their way down."""
    await bus.publish("fl.sft.seed", state(0))
    told: list[Event] = []
    codecs = dict.fromkeys(SITES, up)
    if up == "mixed":
        codecs = {"a": "delta | int8", "b": "int8", "c": "same | none"}
        up = "none"
    updates: dict[str, Arrays] = {}
    async with asyncio.timeout(PATIENCE), Client(bus.url) as other:
        run = aggregate(bus, spec(up, down), told)
        for seed, (site, weight) in enumerate(SITES.items()):
            task = await join(other, site, tmp_path / "state")
            model = arrays(await task.load())
            update = trained(model, seed) | {"matrix": model["matrix"]}
            update["long"][1_100_000:] = model["long"][1_100_000:]
            updates[site] = await as_decoded(other, update, codecs[site], model, task.model.base)
            job = replace(task.spec, up=Pipeline.parse(codecs[site]).to_json())
            headers = replace(task.model.headers, spec=job)
            assert await replace(task, arriving=Arriving(replace(task.model, headers=headers))).submit(
                update, weight
            )
        final = await run
    assert [event.fields for event in told if event.name == "refused"] == []
    got, expected = arrays(await final.load()), mean_of(updates)
    if down == "none":
        assert share_unlike(got, expected) == 0
    else:
        receipt = await bus.publish(
            "check.mean", {n: v.astype(got[n].dtype) for n, v in expected.items()}, down
        )
        expected = arrays(await (await bus.fetch(receipt.id)).load())
        # A mean that lies between two codes may fall to either side; hardly any does.
        assert share_unlike(got, expected) < 1e-3


@pytest.mark.parametrize("up", ["delta | nf4", "same | none"])
async def test_a_round_in_which_nothing_changed_gives_the_very_same_model(
    bus: Client, tmp_path: Path, up: str
) -> None:
    """Bit for bit; and its updates take next to no bytes."""
    await bus.publish("fl.sft.seed", state(0))
    async with asyncio.timeout(PATIENCE):
        run = aggregate(bus, spec(up))
        for site, weight in SITES.items():
            task = await join(bus, site, tmp_path / "state")
            receipt = await task.submit(await task.load(), weight)
            assert receipt is not None
            assert receipt.bytes_on_wire < 3000 < receipt.bytes_original
        final = arrays(await (await run).load())
    for name, value in state(0).items():
        np.testing.assert_array_equal(final[name], value)


async def test_an_update_against_another_base_is_refused(bus: Client, tmp_path: Path) -> None:
    """It says which base it is from and which it may be from; a better one of the same site counts."""
    await bus.publish("fl.sft.seed", state(0))
    told: list[Event] = []
    base = ""
    async with asyncio.timeout(PATIENCE):
        run = aggregate(bus, spec("delta | int8"), told)
        for site, weight in SITES.items():
            task = await join(bus, site, tmp_path / "state")
            model, base = arrays(await task.load()), task.model.base
            if site == "b":
                foreign = open_base(state(7))
                stray = replace(task.model, info=replace(task.model.info, digest=foreign.id[7:]))
                save_file(state(7), task.state.model(foreign.id[7:]))
                assert await replace(task, arriving=Arriving(stray)).submit(model, weight)
                while not any(event.name == "refused" for event in told):
                    await asyncio.sleep(0.01)
            assert await task.submit(model, weight)
        final = arrays(await (await run).load())
    (refused,) = [event for event in told if event.name == "refused"]
    reason = str(refused.fields["reason"])
    assert reason.startswith("missing-base: 'long' is encoded against message:")
    assert base in reason
    np.testing.assert_array_equal(final["long"], state(0)["long"])


async def test_models_are_changes_from_weights_that_every_site_has(bus: Client, tmp_path: Path) -> None:
    """The aggregator starts from a file, the sites have it too: the first model is little but its name."""
    weights = tmp_path / "weights.safetensors"
    save_file(state(0), weights)
    async with asyncio.timeout(PATIENCE), Client(bus.url) as theirs:
        run = aggregate(theirs, spec("delta | nf4", "delta | nf4", rounds=2), init=weights)
        participants = [Participant(bus, job="sft", site=site, base=weights) for site in SITES]
        finals = await asyncio.gather(*(add_a_tenth(participant) for participant in participants))
        final = await run
    assert theirs.bases == (weights,)
    stages = cast("list[dict[str, object]]", final.info.pipeline["stages"])
    assert stages == [{"name": "delta", "base": open_base(weights).id}]
    for sizes, got in finals:
        assert sizes[0] < 3000 < 100_000 < sizes[1]
        for name, value in got.items():
            if value.dtype.kind == "f":
                assert np.abs(value - state(0)[name] - 0.2).max() < 0.01
            np.testing.assert_array_equal(value, finals[0][1][name])


async def add_a_tenth(participant: Participant) -> tuple[list[int], Arrays]:
    """A site that adds 0.1 to every tensor; the sizes of the models that it got, and the final one."""
    sizes: list[int] = []
    async for task in participant.rounds():
        sizes.append(task.model.info.bytes)
        model = arrays(await task.load())
        update = {
            name: value + np.asarray(0.1, value.dtype) if value.dtype.kind == "f" else value
            for name, value in model.items()
        }
        await task.submit(update, num_examples=1)
    return sizes, arrays(await participant.final.load())


async def test_a_site_without_the_base_is_told_which_one_it_lacks(bus: Client, tmp_path: Path) -> None:
    """Without any, and with other weights: MissingBase names the id, before any value is overwritten."""
    weights = tmp_path / "weights.safetensors"
    save_file(state(0), weights)
    async with asyncio.timeout(PATIENCE):
        run = aggregate(bus, spec("none", "delta | nf4"), init=weights)
        for base in (None, state(1)):
            async with Client(bus.url) as other:
                task = await join(other, "a", tmp_path / "state", base)
                into = state(5)
                for reading in (task.load(), task.load(into=into), task.save(tmp_path / "no.safetensors")):
                    with pytest.raises(MissingBase, match=open_base(weights).id):
                        await reading
                np.testing.assert_array_equal(into["long"], state(5)["long"])
                assert not (tmp_path / "no.safetensors").exists()
    run.cancel()


async def test_a_seed_is_kept_as_the_base_of_the_models_that_follow(bus: Client, tmp_path: Path) -> None:
    """With a state folder the aggregator needs no file, and finds the base again after a restart."""
    with pytest.raises(MissingBase, match="--init, or --state"):
        await aggregate(bus, spec("delta | nf4", "delta | nf4"))
    await bus.publish("fl.sft.seed", state(0))
    told: list[Event] = []
    async with asyncio.timeout(PATIENCE):
        job = spec("delta | nf4", "delta | nf4")
        async with Client(bus.url) as theirs:
            run = aggregate(theirs, job, told, state=tmp_path / "state")
            while not any(event.name == "round" for event in told):
                await asyncio.sleep(0.01)
            run.cancel()
        async with Client(bus.url) as theirs:
            with pytest.raises(MissingBase, match="give it with --base"):
                await aggregate(theirs, job, state=tmp_path / "other")
            run = aggregate(theirs, job, state=tmp_path / "state")
            participants = [Participant(bus, job="sft", site=site, base=state(0)) for site in SITES]
            finals = await asyncio.gather(*(add_a_tenth(participant) for participant in participants))
            await run
    assert np.abs(finals[0][1]["long"] - state(0)["long"] - 0.1).max() < 0.01
    assert list((tmp_path / "state").iterdir()) == []


async def test_a_site_keeps_the_rounds_model_on_disk_and_no_other(bus: Client, tmp_path: Path) -> None:
    """Written while it is decoded, replaced by the next one, gone with the job; tensors only."""
    await bus.publish("fl.sft.seed", state(0) | {"note": "a text"})
    folder = tmp_path / "state" / "sft--a"
    async with asyncio.timeout(PATIENCE):
        run = aggregate(bus, spec("delta | none", "int8", sites=1, quorum=1, rounds=3))
        participant = Participant(bus, job="sft", site="a", state=tmp_path / "state")
        model: Arrays = {}
        async for task in participant.rounds():
            if task.round == 1:
                model = arrays(await task.load())
            elif task.round == 2:
                model = arrays(await task.load(into=model))
            if task.round < 3:
                path = folder / f"model-{task.model.info.digest}.safetensors"
                assert {entry.name for entry in folder.iterdir()} == {path.name, "lock"}
                kept = load_file(path)
                assert set(kept) == set(model) - {"note"}
                for name, value in kept.items():
                    np.testing.assert_array_equal(value, model[name])
            # In the last round the script never loads the model: it is fetched for the change.
            assert await task.submit(model, num_examples=1)
            path = folder / f"model-{task.model.info.digest}.safetensors"
            assert {entry.name for entry in folder.iterdir()} == {path.name, "lock"}
        await run
    assert not folder.exists()
    assert arrays(await participant.final.load())["note"] == "a text"


async def test_nothing_is_kept_where_no_change_is_sent(bus: Client, tmp_path: Path) -> None:
    """A job of plain codecs makes no state folder."""
    await bus.publish("fl.sft.seed", state(0))
    async with asyncio.timeout(PATIENCE):
        run = aggregate(bus, spec("nf4", sites=1, quorum=1))
        async for task in Participant(bus, job="sft", site="a", state=tmp_path / "state").rounds():
            await task.submit(await task.load(), num_examples=1)
            assert not (tmp_path / "state").exists()
        await run


async def digests_of_a_site(folder: Path, disturbed: bool) -> list[str]:
    """Three rounds of one site with feedback; what it sent that counted, to the bit."""
    told: list[Event] = []
    sent: list[str] = []
    old: list[Task] = []
    async with running_broker(folder / "broker") as url, Client(url) as bus, Client(url) as theirs:
        await bus.publish("fl.sft.seed", state(0))
        run = aggregate(theirs, spec("delta | feedback | nf4", sites=1, quorum=1, rounds=3), told)
        for number in (1, 2, 3):
            # Each time a site that has just been started, with nothing but what is on disk.
            gc.collect()
            task = await join(bus, "a", folder / "state")
            model = arrays(await task.load())
            update = trained(model, number)
            if disturbed:
                # A round that is over, and updates of another shape: sent, acknowledged, and refused.
                assert [await each.submit(update, num_examples=1) for each in old] == [None] * len(old)
                for refused in (1, 2):
                    assert await task.submit({"matrix": update["matrix"][refused:]}, num_examples=1)
                    while [event.name for event in told].count("refused") < 2 * number - 2 + refused:
                        await asyncio.sleep(0.01)
            receipt = await task.submit(update, num_examples=1)
            assert receipt is not None
            sent.append(receipt.digest)
            old = [replace(task, state=StateFolder(folder / "other", "x"))]
            del task
        await run
    return sent


async def test_feedback_advances_with_the_updates_that_count(tmp_path: Path) -> None:
    """Not with one that was refused, nor with one that came too late; and a restarted site goes on."""
    async with asyncio.timeout(PATIENCE):
        quiet = await digests_of_a_site(tmp_path / "quiet", disturbed=False)
        assert quiet == await digests_of_a_site(tmp_path / "disturbed", disturbed=True)


async def test_feedback_does_not_advance_with_an_update_that_was_refused_in_the_last_round(
    tmp_path: Path,
) -> None:
    """Its site hears of it no earlier than in the next round, and sends what it would have sent without."""

    async def second(folder: Path, disturbed: bool) -> str:
        told: list[Event] = []
        job = spec("delta | feedback | nf4", sites=2, quorum=1, deadline=1.0, rounds=2)
        async with running_broker(folder / "broker") as url, Client(url) as bus:
            await bus.publish("fl.sft.seed", state(0))
            run = aggregate(bus, job, told)
            a = Participant(bus, job="sft", site="a", state=folder / "state").rounds()
            b = Participant(bus, job="sft", site="b", state=folder / "state").rounds()
            task, other = await anext(a), await anext(b)
            if disturbed:
                other_shape = {"long": trained(arrays(await task.load()), 3)["long"][1:]}
                assert await task.submit(other_shape, num_examples=1)
                while not any(event.name == "refused" for event in told):
                    await asyncio.sleep(0.01)
            await other.submit(trained(arrays(await other.load()), 1), num_examples=1)
            task = await anext(a)
            assert task.round == 2
            receipt = await task.submit(trained(arrays(await task.load()), 2), num_examples=1)
            assert receipt is not None
            await run
            return receipt.digest

    async with asyncio.timeout(PATIENCE):
        assert await second(tmp_path / "quiet", False) == await second(tmp_path / "disturbed", True)


@pytest.mark.parametrize("codec", ["nf4", "delta | nf4", "delta | feedback | int8"])
async def test_the_same_script_runs_with_every_pipeline(bus: Client, tmp_path: Path, codec: str) -> None:
    """Law 7: a site names a file that it has and a folder to keep things in, and never a codec or a stage."""
    weights = tmp_path / "weights.safetensors"
    save_file(state(0), weights)
    async with asyncio.timeout(PATIENCE), Client(bus.url) as theirs:
        run = aggregate(theirs, spec(codec, codec, rounds=3), init=weights, state=tmp_path / "theirs")
        participants = [
            Participant(bus, job="sft", site=site, base=weights, state=tmp_path / "sites") for site in SITES
        ]
        finals = await asyncio.gather(*(add_a_tenth(participant) for participant in participants))
        await run
    error = np.abs(finals[0][1]["long"] - state(0)["long"] - 0.3).mean()
    assert error < (0.5 if codec == "nf4" else 0.005)
