"""How long messages are kept: by limits, by interest and as a work queue, on virtual time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Literal

import pytest

from tensorbus.bus.broker import Broker, BrokerSettings
from tensorbus.bus.broker.uploads import Upload
from tensorbus.bus.consumers import ConsumerConfig
from tensorbus.bus.messages import Receipt
from tensorbus.bus.policies import PolicyConfig
from tensorbus.bus.stores.file import FileStore
from tensorbus.errors import Conflict, InvalidName, InvalidRequest, LimitExceeded, NotFound, QuotaExceeded
from tensorbus.streaming.raw import RawEncoder

HOUR = 3600.0


class Hands:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.time = 1_800_000_000.0

    def wall(self) -> float:
        """Seconds since the epoch."""
        return self.time

    def monotonic(self) -> float:
        """The same seconds."""
        return self.time


def body(size: int = 1000) -> bytes:
    """The frames of a message."""
    encoder = RawEncoder({}, "application/octet-stream", size)
    opening = encoder.open()
    slices = b"".join(head + bytes(payload) for head, payload in encoder.slices(os.urandom(size)))
    return opening + slices + encoder.close()


SIZE = len(body())
"""Bytes of a stored message of a thousand bytes."""


async def publish(broker: Broker, topic: str = "a.b", size: int = 1000, key: str | None = None) -> Receipt:
    """Publish a message."""
    frames = body(size)
    upload = await broker.begin(topic, key, len(frames))
    assert isinstance(upload, Upload)
    async with upload:
        await upload.write(frames)
        return await upload.seal()


async def kept(broker: Broker, topic: str = ">") -> list[str]:
    """The ids of all messages of a filter."""
    return [message.id for message in (await broker.messages(topic, limit=1000)).messages]


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what follows by itself, soon."""
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.001)


@pytest.fixture
def clock() -> Hands:
    """Virtual time."""
    return Hands()


def a_broker(path: Path, clock: Hands, window: float = HOUR) -> Broker:
    """One that does nothing by itself; small messages are in rows, others in files."""
    settings = BrokerSettings(sweep_interval=0, inline_bytes=2000, duplicate_window=window)
    return Broker(FileStore(path), settings, clock)


@pytest.fixture
async def broker(tmp_path: Path, clock: Hands) -> AsyncIterator[Broker]:
    """A running broker."""
    async with a_broker(tmp_path, clock) as broker:
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
    files = {path.stem for path in (tmp_path / "frames").iterdir()}
    assert files == (set() if size == 1000 else {*mine[2:], *others, *free})
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
    async with a_broker(tmp_path, clock) as broker:
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
    async with a_broker(tmp_path, clock) as broker:
        first = await owned(broker, "t1", 2 * SIZE, key="k")
        await owned(broker, "t1", 2 * SIZE)
    async with a_broker(tmp_path, clock) as broker:
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
    async with a_broker(tmp_path, clock) as broker:
        await broker.ensure_consumer("c", ConsumerConfig(">"))
        sent = [await publish(broker) for _ in range(4)]
        taken = await broker.pull("c", 3)
        await broker.ack("c", taken[0].token)
        await broker.ack("c", taken[2].token)
    async with a_broker(tmp_path, clock) as broker:
        await broker.put_policy("p", PolicyConfig("a.b", retention="interest"))
        assert await kept(broker) == [sent[1].id, sent[3].id]
    async with a_broker(tmp_path, clock) as broker:
        assert [policy.name for policy in await broker.policies()] == ["p"]
        await broker.ack("c", taken[1].token)
    async with a_broker(tmp_path, clock) as broker:
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


# --- policies ----------------------------------------------------------------------------------------


async def test_a_topic_has_one_policy(broker: Broker) -> None:
    """Filters of two policies have no topic in common; a policy may be changed to another filter."""
    await broker.put_policy("p", PolicyConfig("a.*"))
    with pytest.raises(Conflict, match=r"policy 'p' for a\.\* select topics in common"):
        await broker.put_policy("q", PolicyConfig("*.b"))
    await broker.put_policy("q", PolicyConfig("a.*.c"))
    await broker.put_policy("p", PolicyConfig("b.*"))
    await broker.put_policy("r", PolicyConfig("a.*"))
    assert [policy.name for policy in await broker.policies()] == ["p", "q", "r"]
    assert (await broker.policy("p")).config == PolicyConfig("b.*")


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"filter": "a..b"},
        {"filter": "a", "retention": "forever"},
        {"filter": "a", "max_messages": 0},
        {"filter": "a", "max_bytes": 1.5},
        {"filter": "a", "max_age": 0},
        {"filter": "a", "max_age": float("nan")},
        {"filter": "a", "duplicate_window": -1},
        {"filter": "a", "discard": "new"},
        {"filter": "a", "colour": "red"},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(document: dict[str, object]) -> None:
    """Before it is looked at any further."""
    with pytest.raises((InvalidRequest, InvalidName)):
        PolicyConfig.from_json(document)


async def test_a_policy_survives_its_json(broker: Broker) -> None:
    """What is written is what is read, defaults filled in."""
    config = PolicyConfig("a.>", "workqueue", 5, 6, 7.5, "new", 8.0)
    assert PolicyConfig.from_json(config.to_json()) == config
    assert PolicyConfig.from_json({"filter": "a"}) == PolicyConfig("a")
    with pytest.raises(InvalidName):
        await broker.put_policy("no name", config)


# --- keys --------------------------------------------------------------------------------------------


async def test_a_key_is_remembered_for_its_window_over_restarts(tmp_path: Path, clock: Hands) -> None:
    """As long as its message is there, and until the window is over if that is later; then it is new."""
    async with a_broker(tmp_path, clock) as broker:
        deleted = await publish(broker, "a", key="k")
        there = await publish(broker, "b", key="k")
        await broker.delete(deleted.id)
    clock.time += HOUR - 1
    async with a_broker(tmp_path, clock) as broker:
        assert (await broker.receipt("a", "k")).id == deleted.id
        clock.time += 2
        await broker.sweep()
        with pytest.raises(NotFound):
            await broker.receipt("a", "k")
        assert (await broker.receipt("b", "k")).id == there.id
        assert not (await publish(broker, "a", key="k")).duplicate
        await broker.delete(there.id)
        await broker.sweep()
        assert not (await publish(broker, "b", key="k")).duplicate


async def test_a_policy_has_a_window_of_its_own(broker: Broker, clock: Hands) -> None:
    """Shorter or longer than the broker's."""
    await broker.put_policy("short", PolicyConfig("a", duplicate_window=10))
    await broker.put_policy("long", PolicyConfig("b", duplicate_window=10 * HOUR))
    for topic in "abc":
        await broker.delete((await publish(broker, topic, key="k")).id)
    for passed, known in ((9, "abc"), (11, "bc"), (HOUR + 1, "b"), (10 * HOUR + 1, "")):
        clock.time = 1_800_000_000.0 + passed
        await broker.sweep()
        found = ""
        for topic in "abc":
            try:
                await broker.receipt(topic, "k")
                found += topic
            except NotFound:
                pass
        assert found == known
