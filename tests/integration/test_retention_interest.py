"""Messages that are kept for as long as somebody waits for them: interest, and work queues."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import pytest

from storing.retained import Hands, a_broker, kept, publish, until
from tensorbus.bus.broker import Broker
from tensorbus.bus.consumers import ConsumerConfig
from tensorbus.bus.messages import Receipt
from tensorbus.bus.policies import PolicyConfig
from tensorbus.bus.stores.file import FileStore
from tensorbus.errors import Conflict


@pytest.fixture
def clock() -> Hands:
    """Virtual time."""
    return Hands()


@pytest.fixture
async def broker(tmp_path: Path, clock: Hands) -> AsyncIterator[Broker]:
    """A running broker."""
    async with a_broker(FileStore(tmp_path), clock) as broker:
        yield broker


# --- interest ----------------------------------------------------------------------------------------


async def test_interest_ends_with_the_last_settlement(broker: Broker, clock: Hands) -> None:
    """A message is there until each matching consumer has settled it, by ack or by term."""
    await broker.put_policy("p", PolicyConfig("a.>", retention="interest"))
    for name, pattern in (("all", ">"), ("some", "a.b"), ("else", "x")):
        await broker.ensure_consumer(name, ConsumerConfig(pattern))
    sent = await publish(broker)
    (mine,) = await broker.pull("all")
    await broker.ack("all", mine.token)
    await broker.sweep()
    assert await kept(broker) == [sent.id]
    (others,) = await broker.pull("some")
    await broker.nak("some", others.token)
    await broker.sweep()
    assert await kept(broker) == [sent.id]
    (others,) = await broker.pull("some")
    await broker.term("some", others.token)

    async def is_gone() -> bool:
        return await kept(broker, "a.b") == []

    await until(is_gone)


async def test_without_interest_nothing_is_kept(broker: Broker) -> None:
    """A message that no consumer waits for goes at once; its receipt is good, and its key is known."""
    await broker.put_policy("p", PolicyConfig("a.b", retention="interest"))
    await broker.ensure_consumer("c", ConsumerConfig("other"))
    await publish(broker, key="k")

    async def is_gone() -> bool:
        return await kept(broker) == []

    await until(is_gone)
    assert isinstance(await broker.begin("a.b", "k"), Receipt)


async def test_interest_is_what_the_consumers_are_now(broker: Broker) -> None:
    """One that starts later does not wait for what was before; one that is deleted waits for nothing."""
    await broker.put_policy("p", PolicyConfig("a.b", retention="interest"))
    await broker.ensure_consumer("early", ConsumerConfig(">"))
    await broker.ensure_consumer("gone", ConsumerConfig(">"))
    first = await publish(broker)
    await broker.ensure_consumer("late", ConsumerConfig(">", start="new"))
    second = await publish(broker)
    for delivery in await broker.pull("early", 9):
        await broker.ack("early", delivery.token)
    await broker.sweep()
    assert await kept(broker) == [first.id, second.id]
    await broker.delete_consumer("gone")
    await broker.sweep()
    assert await kept(broker) == [second.id]


async def test_a_restart_takes_up_where_interest_was(tmp_path: Path, clock: Hands) -> None:
    """What was settled by all before the restart goes when the broker starts, what was not stays."""
    async with a_broker(FileStore(tmp_path), clock) as broker:
        await broker.ensure_consumer("c", ConsumerConfig(">"))
        sent = [await publish(broker) for _ in range(4)]
        taken = await broker.pull("c", 3)
        await broker.ack("c", taken[0].token)
        await broker.ack("c", taken[2].token)
    async with a_broker(FileStore(tmp_path), clock) as broker:
        await broker.put_policy("p", PolicyConfig("a.b", retention="interest"))
        assert await kept(broker) == [sent[1].id, sent[3].id]
    async with a_broker(FileStore(tmp_path), clock) as broker:
        assert [policy.name for policy in await broker.policies()] == ["p"]
        await broker.ack("c", taken[1].token)
    async with a_broker(FileStore(tmp_path), clock) as broker:
        assert await kept(broker) == [sent[3].id]


# --- work queues -------------------------------------------------------------------------------------


async def test_a_work_queue_is_emptied_by_its_workers(broker: Broker) -> None:
    """Messages wait for their consumer, however late it comes, and go with its ack."""
    await broker.put_policy("p", PolicyConfig("jobs.>", retention="workqueue"))
    sent = [(await publish(broker, "jobs.a")).id for _ in range(3)]
    await broker.sweep()
    assert await kept(broker) == sent
    await broker.ensure_consumer("workers", ConsumerConfig("jobs.>"))
    first, second = await broker.pull("workers", 2)
    await broker.ack("workers", second.token)

    async def is_so() -> bool:
        return await kept(broker) == [sent[0], sent[2]]

    await until(is_so)
    await broker.ack("workers", first.token)
    await broker.sweep()
    assert await kept(broker) == sent[2:]


async def test_a_work_queue_has_one_consumer_for_each_message(broker: Broker) -> None:
    """A second one on the same topics is refused, and one that would leave messages out; others are not."""
    await broker.put_policy("p", PolicyConfig("jobs.*", retention="workqueue"))
    await broker.ensure_consumer("a", ConsumerConfig("jobs.a"))
    await broker.ensure_consumer("a", ConsumerConfig("jobs.a"))
    await broker.ensure_consumer("b", ConsumerConfig("jobs.b"))
    await broker.ensure_consumer("elsewhere", ConsumerConfig("*"))
    for pattern in (">", "jobs.*", "*.a"):
        with pytest.raises(Conflict, match="share one consumer"):
            await broker.ensure_consumer("c", ConsumerConfig(pattern))
    with pytest.raises(Conflict, match="start with all"):
        await broker.ensure_consumer("c", ConsumerConfig("jobs.c", start="new"))
    outcomes = await asyncio.gather(
        *(broker.ensure_consumer(name, ConsumerConfig("jobs.d")) for name in ("d", "e")),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 1


async def test_what_has_many_consumers_does_not_become_a_work_queue(broker: Broker) -> None:
    """The policy is refused, and nothing is removed by it."""
    await broker.ensure_consumer("a", ConsumerConfig("jobs.>"))
    await broker.ensure_consumer("b", ConsumerConfig("jobs.a"))
    sent = await publish(broker, "jobs.a")
    with pytest.raises(Conflict, match="work queue"):
        await broker.put_policy("p", PolicyConfig("jobs.*", retention="workqueue"))
    assert await broker.policies() == []
    assert await kept(broker) == [sent.id]


@pytest.mark.parametrize("size", [10, 5000], ids=["rows", "files"])
@pytest.mark.parametrize("retention", ["interest", "workqueue"])
async def test_a_dead_letter_outlives_its_message(
    broker: Broker, retention: Literal["interest", "workqueue"], size: int
) -> None:
    """Its death settles the message, which goes; the letter is there, whole, and can be replayed."""
    await broker.put_policy("p", PolicyConfig("jobs", retention=retention))
    await broker.ensure_consumer("c", ConsumerConfig("jobs", max_deliver=1, dead_letter="dead.c"))
    sent = await publish(broker, "jobs", size)
    (delivery,) = await broker.pull("c")
    await broker.term("c", delivery.token)

    async def is_gone() -> bool:
        return await kept(broker, "jobs") == []

    await until(is_gone)
    (letter,) = (await broker.messages("dead.c")).messages
    assert letter.digest == sent.digest
    async with await broker.open_reader(letter.id) as reader:
        assert sum([len(chunk) async for chunk in reader]) == sent.bytes
    again = await broker.replay(letter.id, everyone=False)
    (delivery,) = await broker.pull("c")
    assert delivery.message.id == again.id
    await broker.ack("c", delivery.token)
    await broker.sweep()
    assert await kept(broker) == []
