"""Redelivery, batches and expiry of consumers, on a real broker and disk, and on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storing.delivered import SETTINGS, body, ids, one, publish
from storing.virtual import VirtualClock
from tensorbus.bus.broker import Broker
from tensorbus.bus.consumers import ConsumerConfig, DeliveryInfo
from tensorbus.bus.stores.file import FileStore
from tensorbus.errors import AlreadySettled, InvalidRequest, NotFound


@pytest.fixture
def clock() -> VirtualClock:
    """Virtual time."""
    return VirtualClock()


@pytest.fixture
async def broker(tmp_path: Path, clock: VirtualClock) -> AsyncIterator[Broker]:
    """A running broker on an empty directory and on virtual time."""
    async with Broker(FileStore(tmp_path), SETTINGS, clock) as running:
        yield running


# --- when it comes again -----------------------------------------------------------------------------


async def test_backoff_says_how_long_each_attempt_may_take(broker: Broker, clock: VirtualClock) -> None:
    """Each attempt has its own wait, the last one holds for all further ones; not a moment earlier."""
    await publish(broker)
    await broker.ensure_consumer("c", ConsumerConfig(">", ack_wait=1000, backoff=(1, 5, 30)))
    for attempt, wait in enumerate((1, 5, 30, 30, 30), 1):
        assert (await one(broker)).attempt == attempt
        clock.now += wait - 0.125
        assert await ids(broker) == []
        clock.now += 0.125
    assert (await one(broker)).attempt == 6


async def test_in_progress_gives_the_wait_of_the_attempt(broker: Broker, clock: VirtualClock) -> None:
    """With a backoff, each sign of life is worth as much as the attempt."""
    await publish(broker)
    await broker.ensure_consumer("c", ConsumerConfig(">", backoff=(10, 100)))
    delivery = await one(broker)
    clock.now += 9
    await broker.in_progress("c", delivery.token)
    clock.now += 9.875
    assert await ids(broker) == []
    clock.now += 0.125
    second = await one(broker)
    clock.now += 99.875
    await broker.in_progress("c", second.token)
    clock.now += 99.875
    assert await ids(broker) == []


async def test_a_nak_with_a_delay_survives_a_restart(tmp_path: Path, clock: VirtualClock) -> None:
    """Neither earlier nor as another attempt, whatever happens to the broker meanwhile."""
    async with Broker(FileStore(tmp_path), SETTINGS, clock) as broker:
        await publish(broker)
        await broker.ensure_consumer("c", ConsumerConfig(">"))
        await broker.nak("c", (await one(broker)).token, delay=100)
    clock.now += 50
    async with Broker(FileStore(tmp_path), SETTINGS, clock) as broker:
        assert await ids(broker) == []
        clock.now += 50
        assert (await one(broker)).attempt == 2


async def test_a_sweep_wakes_those_who_wait_for_what_is_due(broker: Broker, clock: VirtualClock) -> None:
    """A pull that waits sees that time has passed on the broker's clock."""
    await publish(broker)
    await broker.ensure_consumer("c", ConsumerConfig(">", ack_wait=1000))
    await one(broker)
    waiting = asyncio.create_task(broker.pull("c", 1, wait=10_000))
    await asyncio.sleep(0)
    clock.now += 1000
    await broker.sweep()
    (again,) = await waiting
    assert again.attempt == 2


async def test_what_nobody_read_is_no_attempt(tmp_path: Path, clock: VirtualClock) -> None:
    """Given back unread, a delivery comes at once and does not count; its old token is worth nothing."""
    async with Broker(FileStore(tmp_path), SETTINGS, clock) as broker:
        await publish(broker)
        await broker.ensure_consumer("c", ConsumerConfig(">", max_deliver=1))
        first = await one(broker)
        await broker.nak("c", first.token, unread=True)
        second = await one(broker)
        assert (second.attempt, first.token == second.token) == (1, False)
        with pytest.raises(AlreadySettled):
            await broker.ack("c", first.token)
        await broker.nak("c", second.token, unread=True)
    async with Broker(FileStore(tmp_path), SETTINGS, clock) as broker:
        assert (await one(broker)).attempt == 1


# --- many at a time ----------------------------------------------------------------------------------


async def test_acks_in_a_batch_succeed_and_fail_by_themselves(tmp_path: Path, clock: VirtualClock) -> None:
    """Each token has its own outcome, in order; one that is named twice is settled once; all of it lasts."""
    async with Broker(FileStore(tmp_path), SETTINGS, clock) as broker:
        for _ in range(3):
            await publish(broker)
        await broker.ensure_consumer("c", ConsumerConfig(">"))
        first, second, third = [d.token for d in await broker.pull("c", 3)]
        await broker.ack("c", second)
        outcomes = await broker.ack_all("c", [first, second, "nonsense", third, first])
        assert [type(outcome) for outcome in outcomes] == [
            type(None),
            AlreadySettled,
            NotFound,
            type(None),
            AlreadySettled,
        ]
        for bad in ([], ["x"] * 257):
            with pytest.raises(InvalidRequest):
                await broker.ack_all("c", bad)
        with pytest.raises(NotFound):
            await broker.ack_all("d", [first])
    clock.now += 1000
    async with Broker(FileStore(tmp_path), SETTINGS, clock) as broker:
        assert await ids(broker) == []


async def test_a_batch_may_be_kept_or_given_back(broker: Broker, clock: VirtualClock) -> None:
    """in_progress and nak of many deliveries do what they do to one."""
    for _ in range(3):
        await publish(broker)
    await broker.ensure_consumer("c", ConsumerConfig(">", ack_wait=10))
    tokens = [delivery.token for delivery in await broker.pull("c", 3)]
    clock.now += 9
    assert await broker.in_progress_all("c", tokens) == [None] * 3
    clock.now += 9
    assert await ids(broker) == []
    outcomes = await broker.nak_all("c", [*tokens, tokens[0]])
    assert outcomes[:3] == [None] * 3
    assert isinstance(outcomes[3], AlreadySettled)
    assert [delivery.attempt for delivery in await broker.pull("c", 3)] == [2, 2, 2]


async def test_small_bodies_come_along(broker: Broker) -> None:
    """Frames up to the size that is asked for, exactly as published; with the first delivery and the next."""
    small = await publish(broker, text=b"small")
    await publish(broker, text=bytes(5000))
    await broker.ensure_consumer("c", ConsumerConfig(">"))
    one, two = await broker.pull("c", 2, inline=1000)
    assert (one.message.id, one.frames, two.frames) == (small.id, body(b"small"), None)
    await broker.nak_all("c", [one.token, two.token])
    again, other = await broker.pull("c", 2, inline=100_000)
    assert (again.frames, other.frames) == (body(b"small"), body(bytes(5000)))
    for delivery in (again, other):
        assert DeliveryInfo.from_json(delivery.to_json()) == delivery


async def test_an_answer_holds_no_more_than_it_may(broker: Broker) -> None:
    """However many small bodies there are, those that come along are half a mebibyte at most."""
    await asyncio.gather(*(publish(broker, text=bytes(30_000)) for _ in range(40)))
    await broker.ensure_consumer("c", ConsumerConfig(">"))
    got = await broker.pull("c", 40, inline=1 << 20)
    assert len(got) == 40
    assert 400_000 < sum(len(delivery.frames or b"") for delivery in got) <= 512 << 10


# --- consumers that nobody uses ----------------------------------------------------------------------


async def test_an_unused_consumer_expires(tmp_path: Path, clock: VirtualClock) -> None:
    """After its threshold without a pull or a settlement, and only then; also across a restart."""
    async with Broker(FileStore(tmp_path), SETTINGS, clock) as broker:
        await publish(broker)
        for name in ("c", "worked", "kept"):
            threshold = None if name == "kept" else 100.0
            config = ConsumerConfig(">", ack_wait=10_000, inactive_threshold=threshold)
            await broker.ensure_consumer(name, config)
        delivery = await one(broker, "worked")
        clock.now += 99
        await broker.sweep()
        assert len(await broker.consumers()) == 3
        await broker.in_progress("worked", delivery.token)
        clock.now += 1
        await broker.sweep()
        assert [info.name for info in await broker.consumers()] == ["kept", "worked"]
        with pytest.raises(NotFound):
            await broker.pull("c")
    async with Broker(FileStore(tmp_path), SETTINGS, clock) as broker:
        clock.now += 99
        await broker.sweep()
        await broker.ack("worked", delivery.token)
        clock.now += 100
        await broker.sweep()
        assert [info.name for info in await broker.consumers()] == ["kept"]


async def test_a_consumer_that_somebody_waits_on_does_not_expire(broker: Broker, clock: VirtualClock) -> None:
    """A long poll is use enough, however long it takes."""
    await broker.ensure_consumer("c", ConsumerConfig(">", inactive_threshold=10))
    waiting = asyncio.create_task(broker.pull("c", 1, wait=10_000))
    await asyncio.sleep(0)
    clock.now += 1000
    await broker.sweep()
    sent = await publish(broker)
    assert [delivery.message.id for delivery in await waiting] == [sent.id]
    clock.now += 9
    await broker.sweep()
    clock.now += 1
    await broker.sweep()
    assert await broker.consumers() == []
