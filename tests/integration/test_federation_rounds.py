"""A federation at work: aggregator and sites on a real broker."""

from __future__ import annotations

import asyncio
import json
import math
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

from tensorbus.aggregator.events import Event
from tensorbus.aggregator.job import JobSpec
from tensorbus.aggregator.models import GlobalModel, newest_model
from tensorbus.aggregator.participant import Participant, Task
from tensorbus.aggregator.worker import Aggregator
from tensorbus.bus.broker import Broker
from tensorbus.bus.client import Client, ClientSettings, Progress
from tensorbus.bus.server import Server, ServerSettings
from tensorbus.bus.stores.file import FileStore
from tensorbus.bus.testing import running_broker
from tensorbus.errors import InvalidRequest, JobError, NonFiniteValues, RoundClosed

Arrays = dict[str, npt.NDArray[Any]]
PATIENCE = 60.0
"""Seconds that no test here comes near; it turns a hang into a failure."""

NF4: dict[str, object] = {"quantizer": {"name": "nf4"}, "keep": ["*norm*"]}


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


def spec(**change: Any) -> JobSpec:
    """Two sites, three rounds."""
    return replace(JobSpec("sft", sites=2, rounds=3, quorum=2, deadline=600), **change)


def aggregate(
    bus: Client, job: JobSpec, told: Callable[[Event], None] = lambda event: None
) -> asyncio.Task[GlobalModel]:
    """An aggregator in this process."""
    return asyncio.create_task(Aggregator(bus, job, init=None, listener=told).run())


def loaded(container: object) -> Arrays:
    """A numpy container."""
    return cast(Arrays, container)


async def take_part(url: str, site: str, step: float) -> tuple[list[int], Arrays]:
    """A site that adds ``step`` to whatever it gets; the rounds it saw and the final model."""
    seen: list[int] = []
    async with Client(url) as bus:
        participant = Participant(bus, job="sft", site=site)
        async for task in participant.rounds():
            seen.append(task.round)
            model = loaded(await task.load())
            update = {name: value + np.asarray(step, value.dtype) for name, value in model.items()}
            metrics = {"loss": 1 / task.round, "width": cast(float, np.int64(4)), "grad": math.inf}
            assert await task.submit(update, cast(int, np.int64(10 * len(site))), metrics)
        return seen, loaded(await participant.final.load())


async def test_sites_and_aggregator_come_to_the_weighted_mean_and_end_by_themselves(
    url: str, bus: Client
) -> None:
    """Three rounds of two sites; afterwards the broker holds the last two models and nothing else."""
    await bus.publish("fl.sft.seed", {"w": np.zeros((100, 7), np.float32), "norm": np.ones(3, np.float32)})
    events: list[Event] = []
    async with asyncio.timeout(PATIENCE):
        final, (seen, got), (_, same) = await asyncio.gather(
            aggregate(bus, spec(), events.append), take_part(url, "a", 1.0), take_part(url, "bbb", 5.0)
        )
    assert seen == [1, 2, 3]
    assert (final.round, final.final) == (4, True)
    np.testing.assert_allclose(got["w"], 3 * (1 * 10 + 5 * 30) / 40)
    for name in got:
        np.testing.assert_array_equal(got[name], same[name])
    assert [info.headers["round"] async for info in bus.messages()] == [3, 4]
    assert await bus.consumers() == []
    names = [event.name for event in events]
    assert names.count("folded") == 6
    assert names.count("published") == 4
    assert names[-1] == "done"
    closing = [event for event in events if event.name == "closing"]
    assert closing[1].fields["metrics"] == {"loss": pytest.approx(0.5), "width": 4.0}
    assert all(isinstance(event.to_json()["time"], str) for event in events)


async def test_the_script_never_names_a_codec_and_gets_what_the_job_says(url: str, bus: Client) -> None:
    """nf4 both ways with exact norms: on the wire the messages are an eighth, and the norms are exact."""
    random = np.random.default_rng(0)
    seed = {
        "weight": random.normal(size=(512, 512)).astype(np.float32),
        "norm": random.normal(size=512).astype(np.float32),
    }
    await bus.publish("fl.sft.seed", seed)
    job = spec(rounds=1, down=NF4, up=NF4)
    async with asyncio.timeout(PATIENCE):
        final, (_, got), _ = await asyncio.gather(
            aggregate(bus, job), take_part(url, "a", 0.0), take_part(url, "b", 0.0)
        )
    np.testing.assert_allclose(got["norm"], seed["norm"], rtol=3e-7)  # sums round, nf4 would err by 0.07
    assert 0 < np.abs(got["weight"] - seed["weight"]).mean() < 0.3
    assert final.spec == job
    assert final.info.bytes < 0.15 * 4 * 512 * 512
    assert final.info.original_bytes == 4 * (512 * 512 + 512)


async def test_torch_models_go_round_bf16_and_tied(url: str, bus: Client) -> None:
    """bf16 stays bf16, the output head stays tied, decoding in place works; the aggregator has no torch."""
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(300, 16, dtype=torch.bfloat16)
            self.head = torch.nn.Linear(16, 300, bias=False, dtype=torch.bfloat16)
            self.head.weight = self.embed.weight
            self.register_buffer("steps", torch.tensor(0))

    seed = Net()
    await bus.publish("fl.sft.seed", seed.state_dict())

    async def site(name: str, step: float) -> Net:
        model = Net()
        async with Client(url) as mine:
            participant = Participant(mine, job="sft", site=name)
            async for task in participant.rounds():
                model.load_state_dict(cast("dict[str, torch.Tensor]", await task.load()))
                with torch.no_grad():
                    model.embed.weight += step
                await task.submit(model.state_dict(), num_examples=1)
            assert await participant.final.load(into=model) is model
        return model

    job = json.dumps(spec(rounds=2).to_json())
    without_torch = Path(__file__).with_name("killable_aggregator.py")
    process = await asyncio.create_subprocess_exec(sys.executable, str(without_torch), url, job)
    async with asyncio.timeout(PATIENCE):
        a, b = await asyncio.gather(site("a", 1.0), site("b", 2.0))
        assert await process.wait() == 0
    final = await newest_model(bus, "sft")
    assert final is not None
    assert final.info.original_bytes == 2 * 300 * 16 + 8
    assert a.embed.weight.data_ptr() == a.head.weight.data_ptr()
    assert a.embed.weight.dtype is torch.bfloat16
    assert torch.equal(a.embed.weight, b.embed.weight)
    difference = (a.embed.weight - seed.embed.weight).float()
    assert torch.allclose(difference, torch.full_like(difference, 3.0), atol=0.05)


async def test_at_the_deadline_a_quorum_is_enough_and_the_straggler_gets_the_newest_model(
    url: str, bus: Client
) -> None:
    """It misses a round, is told so, and takes part in the next."""
    await bus.publish("fl.sft.seed", {"w": np.zeros(3, np.float32)})
    events: list[Event] = []
    run = aggregate(bus, spec(sites=2, quorum=1, rounds=2, deadline=0.5), events.append)
    async with Client(url) as other, asyncio.timeout(PATIENCE):
        fast = Participant(bus, job="sft", site="fast").rounds()
        slow_site = Participant(other, job="sft", site="slow")
        slow = slow_site.rounds()
        first = await anext(slow)
        task = await anext(fast)
        await task.submit({"w": np.full(3, 1, np.float32)}, num_examples=1)
        second = await anext(fast)  # the deadline has passed
        assert (first.round, second.round) == (1, 2)
        assert await first.submit({"w": np.full(3, 9, np.float32)}, num_examples=1) is None
        third = await anext(slow)
        assert third.round == 2
        # Both send the same: whether the second is in before this deadline must not matter.
        await third.submit({"w": np.full(3, 5, np.float32)}, num_examples=1)
        await second.submit({"w": np.full(3, 5, np.float32)}, num_examples=3)
        await run
        assert [task async for task in slow] == []
        assert loaded(await slow_site.final.load())["w"].tolist() == [5, 5, 5]


async def test_a_site_that_joins_late_gets_the_newest_model_only(url: str, bus: Client) -> None:
    """It does not work through what is over."""
    await bus.publish("fl.sft.seed", {"w": np.zeros(3, np.float32)})
    run = aggregate(bus, spec(sites=2, quorum=1, rounds=3, deadline=0.1))
    async with asyncio.timeout(PATIENCE):
        tasks: list[Task] = []
        async for task in Participant(bus, job="sft", site="early").rounds():
            tasks.append(task)
            if task.round == 3:
                async with Client(url) as other:
                    late = Participant(other, job="sft", site="late")
                    joined = await anext(late.rounds())
                    assert joined.round == 3
                    assert loaded(await joined.load())["w"].tolist() == [2, 2, 2]
            await task.submit({"w": np.full(3, task.round, np.float32)}, num_examples=1)
        await run
        with pytest.raises(RoundClosed, match="past round 1"):
            await tasks[0].load()  # its model was deleted two rounds later


async def test_a_site_that_comes_back_is_not_given_a_round_that_it_has_answered(bus: Client) -> None:
    """And an update that is sent twice all the same counts once."""
    await bus.publish("fl.sft.seed", {"w": np.zeros(3, np.float32)})
    events: list[Event] = []
    run = aggregate(bus, spec(rounds=1), events.append)
    async with asyncio.timeout(PATIENCE):
        task = await anext(Participant(bus, job="sft", site="a").rounds())
        sent = await task.submit({"w": np.full(3, 1, np.float32)}, num_examples=1)
        again = await task.submit({"w": np.full(3, 1000, np.float32)}, num_examples=1)
        assert sent is not None
        assert again is not None
        assert (again.duplicate, again.id) == (True, sent.id)
        back = Participant(bus, job="sft", site="a")
        waiting = asyncio.ensure_future(anext(back.rounds(), None))
        other = await anext(Participant(bus, job="sft", site="b").rounds())
        assert not waiting.done()
        await other.submit({"w": np.full(3, 3, np.float32)}, num_examples=1)
        assert await waiting is None
        await run
        assert loaded(await back.final.load())["w"].tolist() == [2, 2, 2]


async def test_a_second_update_of_a_site_under_another_key_is_not_counted(bus: Client) -> None:
    """One by (job, round, site), whatever a foreign client makes of the keys."""
    await bus.publish("fl.sft.seed", {"w": np.zeros(3, np.float32)})
    events: list[Event] = []
    run = aggregate(bus, spec(rounds=1), events.append)
    async with asyncio.timeout(PATIENCE):
        task = await anext(Participant(bus, job="sft", site="a").rounds())
        first = await task.submit({"w": np.full(3, 1, np.float32)}, num_examples=1)
        assert first is not None
        headers = (await bus.message(first.id)).headers
        for key in ("x", "y"):
            await bus.publish("fl.sft.updates", {"w": np.full(3, 50, np.float32)}, headers=headers, key=key)
        other = await anext(Participant(bus, job="sft", site="b").rounds())
        await other.submit({"w": np.full(3, 3, np.float32)}, num_examples=1)
        final = await run
    assert loaded(await final.load())["w"].tolist() == [2, 2, 2]
    assert [event.fields["why"] for event in events if event.name == "ignored"] == ["duplicate", "duplicate"]


async def test_an_update_is_folded_while_others_still_arrive_and_acknowledged_when_the_model_is_sealed(
    bus: Client,
) -> None:
    """Site b's upload stands still until site a's update is folded; nothing is acknowledged by then."""
    await bus.publish("fl.sft.seed", {"w": np.zeros(2_000_000, np.float32)})
    folded = asyncio.Event()
    pending: list[int] = []

    def told(event: Event) -> None:
        if event.name == "folded":
            folded.set()

    async def hold(progress: Progress) -> None:
        await folded.wait()
        if not pending:
            pending.extend(each.ack_pending for each in await bus.consumers() if "updates" in each.name)

    run = aggregate(bus, spec(rounds=1), told)
    async with asyncio.timeout(PATIENCE):
        b = await anext(Participant(bus, job="sft", site="b", up=hold).rounds())
        sending = asyncio.create_task(b.submit({"w": np.full(2_000_000, 3, np.float32)}, num_examples=1))
        a = await anext(Participant(bus, job="sft", site="a").rounds())
        await a.submit({"w": np.full(2_000_000, 1, np.float32)}, num_examples=1)
        await sending
        assert (loaded(await (await run).load())["w"] == 2).all()
    assert pending == [1]


HALF_WAY = """
import asyncio, os, signal, sys
import numpy as np
from tensorbus.aggregator.participant import Participant
from tensorbus.bus.client import Client

def die(progress):
    if progress.bytes_on_wire > 0.5 * progress.total_on_wire:
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    async with Client(sys.argv[1]) as bus:
        async for task in Participant(bus, job="sft", site="doomed", up=die).rounds():
            await task.submit({"w": np.full(8_000_000, 1000, np.float32)}, num_examples=10**6)

asyncio.run(main())
"""


async def test_a_site_that_dies_half_way_through_its_upload_never_touches_the_result(bus: Client) -> None:
    """Killed with most of its update at the broker: the round goes on with the quorum."""
    await bus.publish("fl.sft.seed", {"w": np.zeros(8_000_000, np.float32)})
    events: list[Event] = []
    run = aggregate(bus, spec(sites=3, quorum=2, rounds=1, deadline=3.0), events.append)
    async with asyncio.timeout(PATIENCE):
        doomed = await asyncio.create_subprocess_exec(sys.executable, "-c", HALF_WAY, bus.url)
        assert await doomed.wait() == -signal.SIGKILL
        for site, value in (("a", 1), ("b", 2)):
            task = await anext(Participant(bus, job="sft", site=site).rounds())
            await task.submit({"w": np.full(8_000_000, value, np.float32)}, num_examples=1)
        final = await run
    assert (loaded(await final.load())["w"] == 1.5).all()
    closing = next(event for event in events if event.name == "closing")
    assert closing.fields["sites"] == ["a", "b"]


async def test_a_second_aggregator_takes_the_job_over_and_the_first_one_says_so(
    url: str, bus: Client
) -> None:
    """Started twice by mistake, the job still has one model a round."""
    await bus.publish("fl.sft.seed", {"w": np.zeros(3, np.float32)})
    begun = asyncio.Event()
    first = aggregate(bus, spec(rounds=1), lambda event: begun.set() if event.name == "round" else None)
    async with Client(url) as other, asyncio.timeout(PATIENCE):
        await begun.wait()
        second = aggregate(other, spec(rounds=1))
        with pytest.raises(JobError, match="another aggregator has taken over"):
            await first
        for site in ("a", "b"):
            task = await anext(Participant(bus, job="sft", site=site).rounds())
            await task.submit({"w": np.full(3, 4, np.float32)}, num_examples=1)
        assert (await second).final


async def test_an_aggregator_outlives_its_broker_and_goes_on_with_the_round(tmp_path: Path) -> None:
    """The broker is stopped in the midst of a round and started again on the same data and port."""
    interrupted = asyncio.Event()

    def told(event: Event) -> None:
        if event.name == "interrupted":
            interrupted.set()

    async def answer(url: str, site: str, value: float) -> None:
        async with Client(url) as bus:
            task = await anext(Participant(bus, job="sft", site=site).rounds())
            await task.submit({"w": np.full(3, value, np.float32)}, num_examples=1)

    async with asyncio.timeout(PATIENCE):
        async with running_broker(tmp_path / "broker") as url:
            patient = Client(url, settings=ClientSettings(retry_for=0.2, poll_wait=0.2))
            await patient.publish("fl.sft.seed", {"w": np.zeros(3, np.float32)})
            run = aggregate(patient, spec(rounds=1), told)
            await answer(url, "a", 4)
        await interrupted.wait()
        where = ServerSettings(host="127.0.0.1", port=int(url.rsplit(":", 1)[1]))
        async with Broker(FileStore(tmp_path / "broker")) as broker, Server(broker, where), patient:
            await answer(url, "b", 2)
            assert loaded(await (await run).load())["w"].tolist() == [3, 3, 3]


async def test_both_directions_tell_their_progress(bus: Client) -> None:
    """A site shows how far its download and its upload are."""
    await bus.publish("fl.sft.seed", {"w": np.zeros(2_000_000, np.float32)})
    run = aggregate(bus, spec(sites=1, quorum=1, rounds=1))
    down: list[Progress] = []
    up: list[Progress] = []
    participant = Participant(bus, job="sft", site="a", down=down.append, up=up.append)
    async with asyncio.timeout(PATIENCE):
        async for task in participant.rounds():
            await task.submit(await task.load(), num_examples=1)
        await run
    for told in (down, up):
        assert len(told) > 2
        assert told[-1].bytes_original == 8_000_000
        assert told[-1].bytes_on_wire == told[-1].total_on_wire


async def test_what_a_site_may_not_submit_is_refused_before_anything_is_sent(bus: Client) -> None:
    """num_examples and metrics by value, NaN by the tensor's name; a site's name when it is made."""
    await bus.publish("fl.sft.seed", {"w": np.zeros(300, np.float32)})
    run = aggregate(bus, spec(up=NF4))
    participant = Participant(bus, job="sft", site="a")
    with pytest.raises(JobError, match="no final model yet"):
        _ = participant.final
    async with asyncio.timeout(PATIENCE):
        task = await anext(participant.rounds())
        with pytest.raises(InvalidRequest, match="num_examples is 0"):
            await task.submit(await task.load(), num_examples=0)
        with pytest.raises(InvalidRequest, match="metric 'loss'"):
            await task.submit(await task.load(), num_examples=1, metrics={"loss": cast(float, "low")})
        with pytest.raises(InvalidRequest, match="metric 'loss'"):
            await task.submit(await task.load(), num_examples=1, metrics={"loss": 1e200})
        with pytest.raises(NonFiniteValues, match="'w'"):
            await task.submit({"w": np.full(300, np.nan, np.float32)}, num_examples=1)
        assert [info async for info in bus.messages("fl.sft.updates")] == []
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
