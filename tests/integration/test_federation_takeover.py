"""An aggregator that another has taken the job over from, and that did not hear of it, takes no updates."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tensorbus.aggregator import inbox as inboxes
from tensorbus.aggregator.inbox import Inbox
from tensorbus.aggregator.job import updates_consumer, updates_topic
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
