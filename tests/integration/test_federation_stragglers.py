"""Sites that are late, sit out, leave, come back, or were not drawn; buffered rounds; partial updates."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

from tensorbus.aggregator.control import give_order
from tensorbus.aggregator.events import Event
from tensorbus.aggregator.headers import UpdateHeaders
from tensorbus.aggregator.job import JobSpec, site_consumer
from tensorbus.aggregator.models import GlobalModel
from tensorbus.aggregator.participant import Participant, Task
from tensorbus.aggregator.sampling import drawn_after, is_selected
from tensorbus.aggregator.worker import Aggregator
from tensorbus.bus.client import Client
from tensorbus.bus.testing import running_broker
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.errors import JobError

Arrays = dict[str, npt.NDArray[Any]]
PATIENCE = 60.0
SPEC = JobSpec("sft", sites=2, rounds=2, quorum=2, deadline=600)
CHANGES = Pipeline.parse("delta | none").to_json()


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[Client]:
    """A real broker and a client of it, with a first model."""
    async with running_broker(tmp_path / "broker") as url, Client(url) as client:
        await client.publish("fl.sft.seed", model(0))
        yield client


def model(value: float) -> Arrays:
    """Two tensors of this value."""
    return {"w": np.full(5, value, np.float32), "v": np.full((2, 3), value, np.float32)}


def aggregate(bus: Client, spec: JobSpec, told: list[Event]) -> asyncio.Task[GlobalModel]:
    """An aggregator in this process."""
    return asyncio.create_task(Aggregator(bus, spec, init=None, listener=told.append).run())


async def seen(told: list[Event], name: str, times: int = 1) -> Event:
    """The last of ``times`` events of this name, once it has happened."""
    while len(found := [event for event in told if event.name == name]) < times:
        await asyncio.sleep(0.01)
    return found[-1]


async def values(final: GlobalModel, name: str = "w") -> float:
    """The value that a tensor has all over."""
    (value,) = np.unique(cast(Arrays, await final.load())[name])
    return float(value)


@pytest.mark.parametrize("up", [Pipeline.parse("none").to_json(), CHANGES], ids=["whole", "changes"])
async def test_a_late_update_counts_with_less_weight_where_the_job_says_so(
    bus: Client, tmp_path: Path, up: dict[str, object]
) -> None:
    """Its change, from the model that it comes from, is what counts: 8 examples, one round late, alpha 1."""
    told: list[Event] = []
    spec = replace(SPEC, quorum=1, deadline=0.3, staleness=1, alpha=1.0, up=up)
    async with asyncio.timeout(PATIENCE), Client(bus.url) as theirs:
        run = aggregate(theirs, spec, told)
        fast = Participant(bus, job="sft", site="fast", state=tmp_path).rounds()
        slow = Participant(bus, job="sft", site="slow", state=tmp_path).rounds()
        late, task = await anext(slow), await anext(fast)
        await late.load()
        await task.submit(model(1), num_examples=4)
        task = await anext(fast)
        assert task.round == 2
        await give_order(bus, "sft", "pause")  # or the deadline would close it with whoever is in first
        await seen(told, "paused")
        assert await late.submit(model(4), num_examples=8)  # 4 more than its model had
        folded = await seen(told, "folded", 2)
        assert (folded.fields["behind"], folded.fields["weight"]) == (1, 4.0)
        await task.submit(model(1), num_examples=4)  # as it was
        await seen(told, "folded", 3)
        await give_order(bus, "sft", "resume")
        assert await values(await run) == 1 + 4 * 4 / 8
    closing = await seen(told, "closing", 2)
    assert (closing.fields["stale"], closing.fields["behind"], closing.fields["weight"]) == (1, 0.5, 8.0)


async def test_a_site_that_sits_out_is_not_waited_for_and_gets_the_next_round(bus: Client) -> None:
    """With a quorum that is a share: the deadline is ten minutes away."""
    told: list[Event] = []
    async with asyncio.timeout(PATIENCE), Client(bus.url) as theirs:
        run = aggregate(theirs, replace(SPEC, quorum="100%"), told)
        a = Participant(bus, job="sft", site="a").rounds()
        b = Participant(bus, job="sft", site="b").rounds()
        await (await anext(b)).decline("night")
        await (await anext(a)).submit(model(1), num_examples=1)
        for rounds, value in ((a, 2), (b, 4)):
            task = await anext(rounds)
            assert task.round == 2
            await task.submit(model(value), num_examples=1)
        assert await values(await run) == 3
    declined = await seen(told, "declined")
    assert (declined.fields["site"], declined.fields["reason"]) == ("b", "night")
    assert [event.fields["sites"] for event in told if event.name == "closing"] == [["a"], ["a", "b"]]


async def test_a_site_that_left_is_missed_in_no_round_until_it_comes_back(bus: Client) -> None:
    """Its loop ends; the others go on, also over a restart; in the last round it is there again."""
    told: list[Event] = []
    spec = replace(SPEC, quorum="100%", rounds=4)
    async with asyncio.timeout(PATIENCE):
        a = Participant(bus, job="sft", site="a").rounds()
        async with Client(bus.url) as theirs:
            run = aggregate(theirs, spec, told)
            leaver = Participant(bus, job="sft", site="b")
            async for _ in leaver.rounds():
                await leaver.leave("enough")
            with pytest.raises(JobError):
                _ = leaver.final
            for number in (1, 2):
                task = await anext(a)
                assert task.round == number
                await task.submit(model(number), num_examples=1)
            await seen(told, "round", 3)
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
        async with Client(bus.url) as theirs:
            run = aggregate(theirs, spec, told)
            await (await anext(a)).submit(model(3), num_examples=1)
            task = await anext(a)
            assert task.round == 4
            back = await anext(Participant(bus, job="sft", site="b").rounds())
            await back.submit(model(6), num_examples=1)
            await seen(told, "folded", 4)
            await task.submit(model(4), num_examples=1)
            assert await values(await run) == 5
    closed = [event.fields for event in told if event.name == "closing"]
    assert [fields["left"] for fields in closed] == [["b"], ["b"], ["b"], []]


async def test_of_more_sites_than_are_needed_the_first_ones_count_and_who_was_not_drawn_waits(
    bus: Client,
) -> None:
    """Half of eight sites are drawn in each round, others each time; two are needed."""
    told: list[Event] = []
    spec = replace(SPEC, select=0.5, rounds=3)
    names = [f"site-{number}" for number in range(8)]
    took: dict[str, list[int]] = {}

    async def site(name: str) -> None:
        async for task in Participant(bus, job="sft", site=name).rounds():
            took.setdefault(name, []).append(task.round)
            await task.submit(model(1), num_examples=1)

    async with asyncio.timeout(PATIENCE), Client(bus.url) as theirs:
        run = aggregate(theirs, spec, told)
        await asyncio.gather(*map(site, names))
        await run
    for name, rounds in took.items():
        assert all(is_selected("sft", number, name, 0.5) for number in rounds)
    for event in told:
        if event.name == "closing":
            assert len(cast("list[str]", event.fields["sites"])) == 2


async def test_a_site_whose_consumer_was_deleted_comes_to_the_end(bus: Client) -> None:
    """As a second process of the same site does when it is the first to see the job end."""
    told: list[Event] = []
    spec = replace(SPEC, sites=1, quorum=1, rounds=2)
    rounds: list[int] = []
    async with asyncio.timeout(PATIENCE), Client(bus.url) as theirs:
        run = aggregate(theirs, spec, told)
        async for task in Participant(bus, job="sft", site="a").rounds():
            rounds.append(task.round)
            if task.round == 1:
                await bus.delete_consumer(site_consumer("sft", "a"))
            await task.submit(model(1), num_examples=1)
        await run
    assert rounds == [1, 2]


async def test_a_round_for_which_nobody_was_drawn_ends_all_the_same(
    bus: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some deadlines the two that there are have stepped in."""
    monkeypatch.setattr("tensorbus.aggregator.participant.LOOK_AGAIN", 0.2)
    told: list[Event] = []
    spec = replace(SPEC, select=0.01, rounds=1, deadline=0.5)
    names = [name for name in map("site-{}".format, range(50)) if not is_selected("sft", 1, name, 0.02)][:2]

    async def site(name: str) -> None:
        async for task in Participant(bus, job="sft", site=name).rounds():
            await task.submit(model(1), num_examples=1)

    async with asyncio.timeout(PATIENCE), Client(bus.url) as theirs:
        run = aggregate(theirs, spec, told)
        await asyncio.gather(*map(site, names))
        await run
    [closing] = [event for event in told if event.name == "closing"]
    assert sorted(cast("list[str]", closing.fields["sites"])) == sorted(names)


async def test_an_update_that_comes_before_its_site_steps_in_is_put_off_and_counts(
    bus: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site goes by its own clock, here one that is far ahead: its only update is not lost."""

    def at_once(*_: object) -> int:
        return 0

    monkeypatch.setattr("tensorbus.aggregator.participant.drawn_after", at_once)
    told: list[Event] = []
    spec = replace(SPEC, sites=1, quorum=1, select=0.01, rounds=1, deadline=0.5)
    name = next(name for name in map("site-{}".format, range(50)) if drawn_after("sft", 1, name, 0.01) == 3)
    async with asyncio.timeout(PATIENCE), Client(bus.url) as theirs:
        run = aggregate(theirs, spec, told)
        async for task in Participant(bus, job="sft", site=name).rounds():
            await task.submit(model(1), num_examples=1)
        await run
    names = [event.name for event in told]
    assert names.index("overdue") < names.index("folded")
    assert "ignored" not in names


async def test_updates_that_are_put_off_do_not_keep_others_out(bus: Client) -> None:
    """One that was not drawn sends many; one that was comes last. The deadline is ten minutes away."""
    told: list[Event] = []
    spec = replace(SPEC, sites=1, quorum=1, select=0.5, rounds=1)
    names = {is_selected("sft", 1, name, 0.5): name for name in map("site-{}".format, range(20))}
    headers = UpdateHeaders(names[False], 1, 1).to_headers("sft")
    async with asyncio.timeout(PATIENCE), Client(bus.url) as theirs:
        run = aggregate(theirs, spec, told)
        for _ in range(40):
            await bus.publish("fl.sft.updates", model(9), headers=headers)
        await seen(told, "ignored", 39)
        task = await anext(Participant(bus, job="sft", site=names[True]).rounds())
        await task.submit(model(1), num_examples=1)
        assert await values(await run) == 1


async def test_buffered_rounds_take_so_many_updates_whoever_they_are_from(
    bus: Client, tmp_path: Path
) -> None:
    """A fast site answers each version, and never waits for a slow one, whose only update counts late."""
    told: list[Event] = []
    spec = replace(SPEC, rounds=3, mode="buffered", buffer=1, quorum=1, staleness=2, alpha=0.5, up=CHANGES)
    async with asyncio.timeout(PATIENCE), Client(bus.url) as theirs:
        run = aggregate(theirs, spec, told)
        slow: Task = await anext(Participant(bus, job="sft", site="slow", state=tmp_path).rounds())
        fast = Participant(bus, job="sft", site="fast", state=tmp_path).rounds()
        for number in (1, 2):
            task = await anext(fast)
            assert task.round == number
            loaded = cast(Arrays, await task.load())
            await task.submit({name: value + 1 for name, value in loaded.items()}, num_examples=1)
        await seen(told, "round", 3)
        loaded = cast(Arrays, await slow.load())
        await slow.submit({name: value + 5 for name, value in loaded.items()}, num_examples=1)
        assert await values(await run) == 7
    assert [event.fields["behind"] for event in told if event.name == "folded"] == [0, 0, 2]


@pytest.mark.parametrize("up", [Pipeline.parse("none").to_json(), CHANGES], ids=["whole", "changes"])
async def test_a_site_may_send_only_the_tensors_that_it_trained(
    bus: Client, tmp_path: Path, up: dict[str, object]
) -> None:
    """Each tensor is the mean of those that were sent; one that nobody sent stays as it was."""
    told: list[Event] = []
    async with asyncio.timeout(PATIENCE), Client(bus.url) as theirs:
        run = aggregate(theirs, replace(SPEC, rounds=1, up=up), told)
        for site, update in (("a", {"w": model(2)["w"]}), ("b", {"w": model(4)["w"]})):
            task = await anext(Participant(bus, job="sft", site=site, state=tmp_path).rounds())
            await task.submit(update, num_examples=1)
        final = await run
        assert (await values(final, "w"), await values(final, "v")) == (3, 0)


async def test_a_round_that_all_sit_out_says_why_it_waits_and_ends_when_one_changes_its_mind(
    bus: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site that declined is asked again when the deadline has passed without a quorum."""
    monkeypatch.setattr("tensorbus.aggregator.participant.LOOK_AGAIN", 0.1)
    told: list[Event] = []
    spec = replace(SPEC, rounds=1, deadline=0.5)
    given: dict[str, int] = {}

    async def site(name: str) -> None:
        async for task in Participant(bus, job="sft", site=name).rounds():
            given[name] = given.get(name, 0) + 1
            if given[name] < 3:
                await task.decline("night")
            else:
                await seen(told, "overdue")
                await task.submit(model(len(name)), num_examples=1)

    async with asyncio.timeout(PATIENCE), Client(bus.url) as theirs:
        run = aggregate(theirs, spec, told)
        await asyncio.gather(site("a"), site("b22"))
        assert await values(await run) == 2
    assert given == {"a": 3, "b22": 3}
    overdue = next(event for event in told if event.name == "overdue")
    assert (overdue.fields["declined"], overdue.fields["quorum"]) == (["a", "b22"], 2)
    assert "no other site is expected" in str(overdue.fields["reason"])


async def test_a_site_that_leaves_comes_back_and_leaves_again_in_one_round_is_heard_each_time(
    bus: Client,
) -> None:
    """Its update counts; the next round does not wait for it."""
    told: list[Event] = []
    async with asyncio.timeout(PATIENCE), Client(bus.url) as theirs:
        run = aggregate(theirs, replace(SPEC, quorum="100%"), told)
        a = Participant(bus, job="sft", site="a").rounds()
        task = await anext(a)
        await Participant(bus, job="sft", site="b").leave("for a moment")
        back = Participant(bus, job="sft", site="b")
        await (await anext(back.rounds())).submit(model(3), num_examples=1)
        await seen(told, "folded")
        await back.leave("for good")
        await seen(told, "declined", 2)
        await task.submit(model(1), num_examples=1)
        task = await anext(a)
        await task.submit(model(7), num_examples=1)
        assert await values(await run) == 7
    assert [event.fields["left"] for event in told if event.name == "closing"] == [["b"], ["b"]]


async def test_of_fewer_sites_than_a_buffer_holds_all_make_a_version(bus: Client) -> None:
    """Four updates would be one; one of the three sites has left, and the deadline is ten minutes away."""
    told: list[Event] = []
    spec = replace(SPEC, sites=3, rounds=1, mode="buffered", buffer=4, quorum="100%")
    async with asyncio.timeout(PATIENCE), Client(bus.url) as theirs:
        run = aggregate(theirs, spec, told)
        await seen(told, "round")
        for name, value in (("a", 2), ("b", 4)):
            task = await anext(Participant(bus, job="sft", site=name).rounds())
            await task.submit(model(value), num_examples=1)
        await seen(told, "folded", 2)
        assert not [event for event in told if event.name == "closing"]
        await Participant(bus, job="sft", site="c").leave()
        assert await values(await run) == 3


async def test_the_deadline_closes_a_buffered_version_with_the_quorum(bus: Client) -> None:
    """One of the sites has died, and will never fill the buffer."""
    told: list[Event] = []
    spec = replace(SPEC, sites=3, rounds=1, mode="buffered", buffer=3, quorum=2, deadline=1.0)
    async with asyncio.timeout(PATIENCE), Client(bus.url) as theirs:
        run = aggregate(theirs, spec, told)
        for name, value in (("a", 2), ("b", 4)):
            task = await anext(Participant(bus, job="sft", site=name).rounds())
            await task.submit(model(value), num_examples=1)
        assert await values(await run) == 3
