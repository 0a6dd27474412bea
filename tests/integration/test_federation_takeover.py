"""An aggregator that another has taken the job over from, and that did not hear of it, takes no updates."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tensorbus.aggregator import inbox as inboxes
from tensorbus.aggregator import switch as switches
from tensorbus.aggregator.claim import Claim
from tensorbus.aggregator.control import give_order
from tensorbus.aggregator.inbox import Inbox
from tensorbus.aggregator.job import (
    claims_topic,
    rounds_consumer,
    rounds_topic,
    updates_consumer,
    updates_topic,
)
from tensorbus.aggregator.switch import Switch, obeying, orders_of
from tensorbus.aggregator.updates import FoldingInterrupted
from tensorbus.bus.client import Client
from tensorbus.bus.testing import running_broker
from tensorbus.errors import JobError

JOB = "sft"
PATIENCE = 60.0
TOPIC, CONSUMER = updates_topic(JOB), updates_consumer(JOB)


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[Client]:
    """A real broker and a client of it."""
    async with running_broker(tmp_path / "broker") as url, Client(url) as client:
        yield client


async def test_whoever_lost_its_consumer_to_a_successor_says_so(bus: Client) -> None:
    """The successor's consumer has the same name; its messages are not for the one before it."""
    async with (
        asyncio.timeout(PATIENCE),
        bus.subscribe(TOPIC, consumer=CONSUMER) as mine,
        Inbox(bus, mine, JOB) as inbox,
    ):
        await inbox.check()
        await bus.delete_consumer(CONSUMER)
        with pytest.raises(JobError, match="taken over"):
            await inbox.check()
        async with Client(bus.url) as other, other.subscribe(TOPIC, consumer=CONSUMER):
            with pytest.raises(JobError, match="taken over"):
                await inbox.check()


async def test_it_looks_now_and_then_also_while_messages_come(
    bus: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the successor's consumer brings is not given out."""
    monkeypatch.setattr(inboxes, "LOOK_AGAIN", 0.0)

    async def received(inbox: Inbox) -> None:
        while await inbox.next(asyncio.Event(), timeout=1.0) is None:
            pass

    async with (
        asyncio.timeout(PATIENCE),
        bus.subscribe(TOPIC, consumer=CONSUMER) as mine,
        Inbox(bus, mine, JOB) as inbox,
    ):
        await bus.delete_consumer(CONSUMER)  # nobody waits at the moment, so nobody hears of it
        async with Client(bus.url) as other, other.subscribe(TOPIC, consumer=CONSUMER):
            await other.publish(TOPIC, b"an update")
            with pytest.raises(JobError, match="taken over"):
                await received(inbox)


async def test_of_two_that_begin_at_once_the_later_claim_has_the_job(bus: Client) -> None:
    """Both work with a consumer that one of them made just before it looked: it tells neither whose it is."""
    first, second = Claim(bus, JOB), Claim(bus, JOB)
    async with asyncio.timeout(PATIENCE), Client(bus.url) as other:
        await first.hold()
        async with bus.subscribe(TOPIC, consumer=CONSUMER) as mine:
            await second.hold()
            await bus.delete_consumer(CONSUMER)
            async with other.subscribe(TOPIC, consumer=CONSUMER) as theirs:
                with pytest.raises(JobError, match="taken over"):
                    await Inbox(bus, mine, JOB, first).__aenter__()
                async with Inbox(other, theirs, JOB, second) as inbox:
                    await inbox.check()
                    with pytest.raises(JobError, match="taken over"):
                        await first.hold()  # as a session that begins again does
                    await second.hold()
        assert [info.headers["kind"] async for info in bus.messages(claims_topic(JOB))] == ["claim"]
        await second.drop()
        assert [info async for info in bus.messages(claims_topic(JOB))] == []


async def test_an_order_is_left_to_whoever_has_the_job_now(bus: Client) -> None:
    """The consumer of orders has one name for all aggregators as well."""
    first, second = Claim(bus, JOB), Claim(bus, JOB)
    async with asyncio.timeout(PATIENCE):
        await first.hold()
        async with orders_of(bus, JOB) as orders:
            work = asyncio.create_task(obeying(asyncio.sleep(PATIENCE), Switch(), orders, first))
            await second.hold()
            await give_order(bus, JOB, "cancel")
            with pytest.raises(JobError, match="taken over"):
                await work
        async with (
            Client(bus.url) as other,
            other.subscribe(
                rounds_topic(JOB), consumer=rounds_consumer(JOB), start="new", prefetch=16
            ) as orders,
        ):
            assert (await anext(orders)).headers["action"] == "cancel"


async def test_whoever_is_superseded_ends_whatever_it_is_at(
    bus: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while it waits for somebody to resume the job, or to publish, and no order comes; nor does it end
    its work because somebody else has deleted its consumer: it begins anew.
    """
    monkeypatch.setattr(switches, "LOOK_AGAIN", 0.05)
    first, second = Claim(bus, JOB), Claim(bus, JOB)
    async with asyncio.timeout(PATIENCE):
        await first.hold()
        async with orders_of(bus, JOB) as orders:
            await bus.delete_consumer(rounds_consumer(JOB))
            with pytest.raises(FoldingInterrupted, match="was deleted"):
                await obeying(asyncio.sleep(PATIENCE), Switch(), orders, first)
        async with orders_of(bus, JOB) as orders:
            work = asyncio.create_task(obeying(asyncio.sleep(PATIENCE), Switch(), orders, first))
            await second.hold()
            with pytest.raises(JobError, match="taken over"):
                await work
