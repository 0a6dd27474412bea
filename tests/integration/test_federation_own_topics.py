"""What a site with a token of its own can do to others: nothing, where each answers on a topic of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from tensorbus.aggregator.control import give_order
from tensorbus.aggregator.events import Event
from tensorbus.aggregator.headers import DeclineHeaders, UpdateHeaders
from tensorbus.aggregator.job import JobSpec, update_key
from tensorbus.aggregator.participant import Participant
from tensorbus.aggregator.status import job_status
from tensorbus.aggregator.worker import Aggregator
from tensorbus.bus.access.rights import Rights
from tensorbus.bus.access.token import TokenPlan
from tensorbus.bus.access.token_file import TokenFile
from tensorbus.bus.client import Client
from tensorbus.bus.testing import running_broker
from tensorbus.errors import Forbidden, NotFound

PATIENCE = 60.0
SPEC = JobSpec("sft", sites=2, rounds=2, quorum=2, deadline=600, own_topics=True)


def model(value: float) -> dict[str, Any]:
    """One tensor of this value."""
    return {"w": np.full(5, value, np.float32)}


class Bench:
    """A broker that asks for tokens; one for the aggregator, and one for each site, as the docs make them."""

    def __init__(self, url: str, tokens: TokenFile) -> None:
        self.url = url
        self._tokens = tokens

    def client(self, name: str, **rights: tuple[str, ...]) -> Client:
        """One with these rights."""
        return Client(self.url, str(self._tokens.create(TokenPlan(name, Rights(**rights)))[1]))

    def site(self, name: str) -> Client:
        """One with those of a site."""
        return self.client(name, publish=(f"fl.sft.updates.{name}",), subscribe=("fl.sft.model",))


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """With a first model."""
    tokens = TokenFile(tmp_path)
    tokens.create(TokenPlan("root", Rights(admin=(">",))))
    async with running_broker(tmp_path) as url:
        found = Bench(url, tokens)
        async with found.client("seed", publish=("fl.sft.seed",)) as seeding:
            await seeding.publish("fl.sft.seed", model(0))
        yield found


async def seen(told: list[Event], name: str, times: int = 1) -> list[Event]:
    """All events of this name, once there are so many."""
    while len(found := [event for event in told if event.name == name]) < times:
        await asyncio.sleep(0.01)
    return found


async def test_what_a_site_says_in_the_name_of_another_is_refused_and_the_others_go_on(bench: Bench) -> None:
    """It may not publish anywhere but on its own topic, and what it forges there counts for nobody."""
    told: list[Event] = []
    async with (
        asyncio.timeout(PATIENCE),
        bench.client("aggregator", admin=("fl.sft.>",)) as above,
        bench.site("a") as a,
        bench.site("b") as b,
        bench.site("mallory") as mallory,
    ):
        run = asyncio.create_task(Aggregator(above, SPEC, init=None, listener=told.append).run())
        await seen(told, "round")
        for topic in ("updates", "updates.a", "model", "rounds", "claims", "seed"):
            with pytest.raises(Forbidden):
                await mallory.publish(f"fl.sft.{topic}", model(666))
        for action in ("pause", "cancel"):
            with pytest.raises(Forbidden):
                await give_order(mallory, "sft", action)
        own, key = "fl.sft.updates.mallory", update_key("sft", 1, "a")
        forged = UpdateHeaders("a", 1, 1e12).to_headers("sft")
        await mallory.publish(own, model(666), headers=forged, key=key)  # the very key of that site's update
        left = DeclineHeaders("b", 1, leaves=True).to_headers("sft")
        await mallory.publish(own, b"", headers=left)
        refused = await seen(told, "refused", 2)
        assert all("is not the topic of site" in str(event.fields["reason"]) for event in refused)

        async def take_part(bus: Client, site: str, value: float) -> None:
            async for task in Participant(bus, job="sft", site=site).rounds():
                receipt = await task.submit(model(value), num_examples=1)
                assert receipt is not None and receipt.topic == f"fl.sft.updates.{site}"
                for reading in (mallory.message(receipt.id), mallory.delete(receipt.id)):
                    with pytest.raises((NotFound, Forbidden)):
                        await reading

        await asyncio.gather(take_part(a, "a", 2), take_part(b, "b", 4))
        assert cast("dict[str, Any]", await (await run).load())["w"].tolist() == [3.0] * 5
        closing = [event.fields["sites"] for event in told if event.name == "closing"]
        assert [sorted(cast("list[str]", sites)) for sites in closing] == [["a", "b"]] * 2
        assert {topic.topic for topic in await above.topics()} == {"fl.sft.model"}


async def test_a_job_tells_who_is_in_by_the_topics_of_the_sites(bench: Bench) -> None:
    """What is forged is not shown either; and a site that came back does not train its round again."""
    spec = replace(SPEC, sites=3, quorum=3)
    told: list[Event] = []
    async with (
        asyncio.timeout(PATIENCE),
        bench.client("aggregator", admin=("fl.sft.>",)) as above,
        bench.site("a") as a,
        bench.site("mallory") as mallory,
    ):
        run = asyncio.create_task(Aggregator(above, spec, init=None, listener=told.append).run())
        task = await anext(Participant(a, job="sft", site="a").rounds())
        await task.submit(model(1), num_examples=1)
        await seen(told, "folded")
        run.cancel()
        await asyncio.wait([run])
        headers = UpdateHeaders("b", 1, 1).to_headers("sft")
        await mallory.publish("fl.sft.updates.mallory", model(9), headers=headers)
        assert (await job_status(above, "sft")).sites == ("a",)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(Participant(a, job="sft", site="a").rounds()), 0.5)


@pytest.mark.parametrize("ack_wait", [30.0, 77.0], ids=["alike", "other settings"])
async def test_a_site_whose_name_for_its_consumer_is_taken_goes_on_without(
    bench: Bench, ack_wait: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of consumers are first come, first served; a site needs none, and an aggregator takes its own."""
    monkeypatch.setattr("tensorbus.aggregator.participant.LOOK_AGAIN", 0.2)
    told: list[Event] = []
    async with (
        asyncio.timeout(PATIENCE),
        bench.client("aggregator", admin=("fl.sft.>",)) as above,
        bench.site("a") as a,
        bench.site("mallory") as mallory,
        mallory.subscribe("fl.sft.model", "sft--a", follow=True, ack_wait=ack_wait),
        mallory.subscribe("fl.sft.model", "sft--aggregator--updates"),
    ):
        spec = replace(SPEC, sites=1, quorum=1)
        run = asyncio.create_task(Aggregator(above, spec, init=None, listener=told.append).run())
        async for task in Participant(a, job="sft", site="a").rounds():
            await task.submit(model(5), num_examples=1)
        assert (await run).final
