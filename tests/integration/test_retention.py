"""Limits of a topic and of a token: what makes room, and what is refused, on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storing import frames_left
from storing.retained import HOUR, SIZE, Hands, a_broker, body, kept, publish, until
from tensorbus.bus.broker import Broker
from tensorbus.bus.broker.uploads import Upload
from tensorbus.bus.messages import Receipt
from tensorbus.bus.policies import PolicyConfig
from tensorbus.bus.stores.file import FileStore
from tensorbus.errors import LimitExceeded, NotFound, QuotaExceeded


@pytest.fixture
def clock() -> Hands:
    """Virtual time."""
    return Hands()


@pytest.fixture
async def broker(tmp_path: Path, clock: Hands) -> AsyncIterator[Broker]:
    """A running broker."""
    async with a_broker(FileStore(tmp_path), clock) as broker:
        yield broker


# --- limits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1000, 5000], ids=["rows", "files"])
async def test_the_oldest_messages_make_room_for_new_ones(broker: Broker, tmp_path: Path, size: int) -> None:
    """A topic holds its last three messages; other topics, and those without a policy, have their own."""
    await broker.put_policy("three", PolicyConfig("a.*", max_messages=3))
    mine = [(await publish(broker, "a.b", size)).id for _ in range(5)]
    others = [(await publish(broker, "a.c", size)).id for _ in range(3)]
    free = [(await publish(broker, "free", size)).id for _ in range(5)]

    async def is_so() -> bool:
        return await kept(broker, "a.b") == mine[2:]

    await until(is_so)
    assert await kept(broker, "a.c") == others
    assert await kept(broker, "free") == free
    await frames_left.becomes(tmp_path, () if size == 1000 else {*mine[2:], *others, *free})
    with pytest.raises(NotFound):
        await broker.message(mine[0])


async def test_bytes_are_limited_as_well(broker: Broker) -> None:
    """The oldest go until what is left is within the limit; a message that never fits is refused."""
    await broker.put_policy("small", PolicyConfig("a.b", max_bytes=3 * SIZE))
    ids = [(await publish(broker)).id for _ in range(3)]
    assert await kept(broker) == ids
    large = await publish(broker, size=1500)

    async def is_so() -> bool:
        return await kept(broker) == [ids[2], large.id]

    await until(is_so)
    with pytest.raises(LimitExceeded, match="policy small"):
        await broker.begin("a.b", size=3 * SIZE + 1)
    upload = await broker.begin("a.b")
    assert isinstance(upload, Upload)
    await upload.write(body(4000))
    with pytest.raises(LimitExceeded, match="policy small"):
        await upload.seal()
    assert await is_so()


async def test_a_new_limit_holds_at_once_for_what_is_there(broker: Broker) -> None:
    """When a policy is set or changed, and told what it leaves; when it is deleted, all is kept again."""
    ids = [(await publish(broker)).id for _ in range(5)]
    info, created = await broker.put_policy("p", PolicyConfig("a.b", max_messages=4))
    assert (created, info.messages, info.bytes, info.topics) == (True, 4, 4 * SIZE, 1)
    info, created = await broker.put_policy("p", PolicyConfig("a.b", max_messages=2))
    assert (created, info.messages) == (False, 2)
    assert await kept(broker) == ids[3:]
    await broker.delete_policy("p")
    await publish(broker)
    await broker.sweep()
    assert len(await kept(broker)) == 3
    with pytest.raises(NotFound):
        await broker.delete_policy("p")


async def test_messages_grow_old(broker: Broker, clock: Hands) -> None:
    """A message is removed when it is older than its policy allows, and not before."""
    await broker.put_policy("hour", PolicyConfig("a.>", max_age=HOUR))
    old = [(await publish(broker, f"a.{n}", size)).id for n in range(3) for size in (10, 5000)]
    other = await publish(broker, "b")
    clock.time += HOUR / 2
    young = await publish(broker, "a.0")
    clock.time += HOUR / 2
    await broker.sweep()
    assert set(await kept(broker)) == {*old, other.id, young.id}
    clock.time += 1
    await broker.sweep()
    assert await kept(broker) == [other.id, young.id]


async def test_a_message_is_counted_out_once(broker: Broker, clock: Hands) -> None:
    """What its age has removed makes room: the limits take nothing more than what is over them then."""
    for _ in range(2):
        await publish(broker)
    clock.time += HOUR
    young = [(await publish(broker)).id for _ in range(2)]
    await broker.put_policy("p", PolicyConfig("a.b", max_messages=2, max_age=HOUR / 2))
    assert await kept(broker) == young


async def test_a_limit_removes_no_more_than_it_must(broker: Broker, clock: Hands) -> None:
    """Neither what an age has removed already counts again, nor what a user deletes at that moment."""
    await broker.put_policy("p", PolicyConfig("a.b", max_age=30, max_messages=2))
    old = [await publish(broker) for _ in range(2)]
    clock.time += 31
    new = [(await publish(broker)).id for _ in range(2)]
    await broker.sweep()
    assert await kept(broker) == new
    assert old[0].id not in await kept(broker)
    for number in range(20):
        more = [(await publish(broker)).id for _ in range(2)]
        await broker.sweep()
        late = publish(broker)
        await asyncio.gather(late, broker.delete(more[0]), broker.sweep())
        await broker.sweep()
        assert len(await kept(broker)) == 2, number


async def test_thousands_grow_old_together(tmp_path: Path, clock: Hands) -> None:
    """They are removed in steps, all of them, in one sweep."""
    async with a_broker(FileStore(tmp_path), clock) as broker:
        for _ in range(2):
            await asyncio.gather(*(publish(broker, f"t.{n % 7}", 10) for n in range(800)))
        clock.time += HOUR
        last = await publish(broker, "t.0")
        await broker.put_policy("p", PolicyConfig("t.*", max_age=HOUR / 2))
        assert await kept(broker) == [last.id]
        assert [(t.topic, t.messages, t.bytes) for t in await broker.topics()] == [("t.0", 1, SIZE)]


# --- full is full ------------------------------------------------------------------------------------


async def test_a_full_topic_refuses_what_is_new(broker: Broker) -> None:
    """With discard new nothing stored is touched, the error says what is used, and room is room again."""
    await broker.put_policy("p", PolicyConfig("a.b", max_messages=2, discard="new"))
    first, second = await publish(broker, key="k"), await publish(broker)
    with pytest.raises(QuotaExceeded, match=r"policy p on topic a\.b: 2 of 2 messages"):
        await publish(broker)
    assert await kept(broker) == [first.id, second.id]
    again = await broker.begin("a.b", "k", SIZE)
    assert isinstance(again, Receipt)
    assert again.duplicate
    await broker.delete(second.id)
    third = await publish(broker)
    assert await kept(broker) == [first.id, third.id]


async def test_what_is_on_its_way_has_its_room(broker: Broker) -> None:
    """Two that fit one by one and not together are not both begun; the room of an aborted one is free."""
    await broker.put_policy("p", PolicyConfig("a.b", max_bytes=2 * SIZE, discard="new"))
    upload = await broker.begin("a.b", size=SIZE + 1)
    assert isinstance(upload, Upload)
    with pytest.raises(QuotaExceeded, match=f"{SIZE + 1} of {2 * SIZE} bytes are used and {SIZE} more"):
        await broker.begin("a.b", size=SIZE)
    await upload.abort("for the test")
    await publish(broker)
    await publish(broker)
    with pytest.raises(QuotaExceeded):
        await publish(broker, size=1)


async def test_a_body_of_unknown_size_is_stopped_where_the_room_ends(broker: Broker) -> None:
    """Not when all of it has come, and nothing of it stays."""
    await broker.put_policy("p", PolicyConfig("a.b", max_bytes=100_000, discard="new"))
    frames = body(1_000_000)
    upload = await broker.begin("a.b")
    assert isinstance(upload, Upload)
    with pytest.raises(QuotaExceeded, match="policy p"):  # noqa: PT012 - whichever of the writes it is
        async with upload:
            for start in range(0, len(frames), 10_000):
                await upload.write(memoryview(frames)[start : start + 10_000])
    assert upload.received <= 110_000
    assert await kept(broker) == []
    assert (await publish(broker)).seq == 1


async def test_a_body_of_unknown_size_gets_the_room_that_was_made(broker: Broker) -> None:
    """What was there when it began, and is gone by now, takes none of it."""
    await broker.put_policy("p", PolicyConfig("a.b", max_bytes=100_000, discard="new"))
    before = await publish(broker, size=60_000)
    frames = body(80_000)
    upload = await broker.begin("a.b")
    assert isinstance(upload, Upload)
    async with upload:
        await upload.write(frames[:30_000])
        await broker.delete(before.id)
        for start in range(30_000, len(frames), 10_000):
            await upload.write(frames[start : start + 10_000])
        receipt = await upload.seal()
    assert await kept(broker) == [receipt.id]


async def test_a_limit_that_came_meanwhile_is_not_exceeded(broker: Broker) -> None:
    """What was begun before there was a policy is judged by it when it is to be listed."""
    frames = body()
    upload = await broker.begin("a.b")
    assert isinstance(upload, Upload)
    await upload.write(frames)
    first = await publish(broker)
    await broker.put_policy("p", PolicyConfig("a.b", max_messages=1, discard="new"))
    with pytest.raises(QuotaExceeded):
        await upload.seal()
    assert await kept(broker) == [first.id]


# --- tokens ------------------------------------------------------------------------------------------


async def owned(broker: Broker, owner: str, quota: int, size: int = 1000, key: str | None = None) -> Receipt:
    """Publish as the holder of a token."""
    frames = body(size)
    upload = await broker.begin("a.b", key, len(frames), owner=owner, quota=quota)
    if isinstance(upload, Receipt):
        return upload
    async with upload:
        await upload.write(frames)
        return await upload.seal()


async def test_a_token_stores_no_more_than_its_quota(tmp_path: Path, clock: Hands) -> None:
    """Over restarts; the error names it; a retry is still a duplicate; others have their own."""
    async with a_broker(FileStore(tmp_path), clock) as broker:
        first = await owned(broker, "t1", 2 * SIZE, key="k")
        await owned(broker, "t1", 2 * SIZE)
    async with a_broker(FileStore(tmp_path), clock) as broker:
        with pytest.raises(QuotaExceeded, match=f"token t1: {2 * SIZE} of {2 * SIZE} bytes"):
            await owned(broker, "t1", 2 * SIZE)
        assert (await owned(broker, "t1", 2 * SIZE, key="k")).duplicate
        await owned(broker, "t2", SIZE)
        await broker.delete(first.id)
        await owned(broker, "t1", 2 * SIZE)


async def test_a_token_cannot_get_around_its_quota_by_haste(broker: Broker) -> None:
    """Of ten publishes at once that would each fit, as many are stored as fit together."""
    outcomes = await asyncio.gather(
        *(owned(broker, "t", 3 * SIZE) for _ in range(10)), return_exceptions=True
    )
    stored = [outcome for outcome in outcomes if isinstance(outcome, Receipt)]
    assert len(stored) == 3
    assert {type(outcome) for outcome in outcomes} == {Receipt, QuotaExceeded}
    assert sorted(await kept(broker)) == sorted(receipt.id for receipt in stored)
