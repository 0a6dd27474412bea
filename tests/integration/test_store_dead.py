"""Dead letters on a real broker and disk: what cannot be dealt with is kept, told of, and brought back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import pytest

from tensorbus.bus.broker import Broker, BrokerSettings
from tensorbus.bus.broker.uploads import Upload
from tensorbus.bus.consumers import ConsumerConfig, DeliveryInfo
from tensorbus.bus.messages import MessageInfo, Receipt
from tensorbus.bus.policies import PolicyConfig
from tensorbus.bus.stores.base import Copy, StoredDelivery
from tensorbus.bus.stores.file import FileStore
from tensorbus.errors import AlreadySettled, Conflict, InvalidRequest, NotFound, QuotaExceeded, StorageError
from tensorbus.streaming.raw import RawEncoder

SETTINGS = BrokerSettings(sweep_interval=0)
SMALL, LARGE = b"hello", bytes(200_000)
"""Kept with its row, and in a file."""


class VirtualClock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def wall(self) -> float:
        """Seconds since the epoch."""
        return 1_750_000_000.0 + self.now

    def monotonic(self) -> float:
        """Seconds."""
        return self.now


def body(text: bytes) -> bytes:
    """The frames of a message."""
    encoder = RawEncoder({"site": "a"}, "text/plain", len(text))
    opening = encoder.open()
    slices = b"".join(head + bytes(payload) for head, payload in encoder.slices(text))
    return opening + slices + encoder.close()


async def publish(broker: Broker, text: bytes = SMALL, topic: str = "t", key: str | None = None) -> Receipt:
    """Publish a message."""
    frames = body(text)
    upload = await broker.begin(topic, key, size=len(frames))
    assert isinstance(upload, Upload)
    await upload.write(frames)
    return await upload.seal()


async def stored(broker: Broker, message_id: str) -> bytes:
    """The frames of a message."""
    async with await broker.open_reader(message_id) as reader:
        return b"".join([bytes(chunk) async for chunk in reader])


async def one(broker: Broker, name: str = "c") -> DeliveryInfo:
    """The next delivery, which is there."""
    (delivery,) = await broker.pull(name, 1)
    return delivery


async def ids(broker: Broker, name: str = "c") -> list[str]:
    """Messages of what can be pulled now."""
    return [delivery.message.id for delivery in await broker.pull(name, 100)]


async def letters(broker: Broker, topic: str = ">") -> list[MessageInfo]:
    """All dead letters."""
    return list((await broker.dead_letters(topic)).messages)


async def refuse(broker: Broker, name: str = "c", reason: str = "no good") -> MessageInfo:
    """Take the next delivery and refuse it; the letter that it becomes."""
    await broker.term(name, (await one(broker, name)).token, reason)
    return (await letters(broker, f"dead.{name}"))[-1]


def files(path: Path) -> set[str]:
    """Ids of the frame files."""
    return {file.stem for file in (path / "frames").iterdir()}


@pytest.fixture
def clock() -> VirtualClock:
    """Virtual time."""
    return VirtualClock()


@pytest.fixture
async def broker(tmp_path: Path, clock: VirtualClock) -> AsyncIterator[Broker]:
    """A running broker on an empty directory and on virtual time."""
    async with Broker(FileStore(tmp_path), SETTINGS, clock) as running:
        yield running


# --- how a message dies ------------------------------------------------------------------------------


async def test_its_own_letters_do_not_stand_in_the_way(broker: Broker) -> None:
    """A consumer that matches its own dead letters passes them by, however many; it gets what lies behind."""
    await broker.ensure_consumer("c", ConsumerConfig(">"))
    for _ in range(3):
        await publish(broker)
    for _ in range(3):
        await refuse(broker)
    behind = await publish(broker)
    assert (await one(broker)).message.id == behind.id


@pytest.mark.parametrize("text", [SMALL, LARGE])
async def test_a_refused_message_becomes_a_letter(tmp_path: Path, clock: VirtualClock, text: bytes) -> None:
    """Another message with the same frames and headers tells how it died; the first one stays as it was."""
    async with Broker(FileStore(tmp_path), SETTINGS, clock) as broker:
        sent = await publish(broker, text, key="round-1/a")
        await broker.ensure_consumer("c", ConsumerConfig("t"))
        delivery = await one(broker)
        clock.now += 5
        await broker.term("c", delivery.token, "not a model")
        with pytest.raises(AlreadySettled):
            await broker.ack("c", delivery.token)
    async with Broker(FileStore(tmp_path), SETTINGS, clock) as broker:
        assert await ids(broker) == []
        (letter,) = await letters(broker)
        assert letter.id != sent.id
        assert (letter.topic, letter.key, letter.seq, letter.digest) == ("dead.c", None, 2, sent.digest)
        assert letter.headers == {"site": "a"}
        death = letter.dead
        assert death is not None
        assert (death.consumer, death.message, death.topic) == ("c", sent.id, "t")
        assert (death.seq, death.key, death.attempts) == (1, "round-1/a", 1)
        assert (death.reason, death.at.timestamp(), death.earlier) == ("not a model", clock.wall(), ())
        assert MessageInfo.from_json(letter.to_json()) == letter
        assert await stored(broker, letter.id) == body(text)
        assert (await broker.message(sent.id)).dead is None
        await broker.delete(sent.id)
        assert await stored(broker, letter.id) == body(text)
        await broker.delete(letter.id)
        assert files(tmp_path) == set()


async def test_attempts_are_used_up_by_time(tmp_path: Path, clock: VirtualClock) -> None:
    """After max_deliver attempts a message is not handed over again, whoever sees to it: a pull or a sweep.

    Attempts count across restarts, and the last worker may settle until its time is over.
    """
    config = ConsumerConfig("t", ack_wait=10, max_deliver=2)
    async with Broker(FileStore(tmp_path), SETTINGS, clock) as broker:
        sent = await publish(broker)
        for name in ("pulled", "swept", "settled"):
            await broker.ensure_consumer(name, config)
            await one(broker, name)
    clock.now += 10
    async with Broker(FileStore(tmp_path), SETTINGS, clock) as broker:
        for name in ("pulled", "swept"):
            assert (await one(broker, name)).attempt == 2
        last = await one(broker, "settled")
        clock.now += 10
        await broker.ack("settled", last.token)
        assert await ids(broker, "pulled") == []
        assert len(await letters(broker)) == 1
        await broker.sweep()
        found = await letters(broker)
        assert {letter.topic for letter in found} == {"dead.pulled", "dead.swept"}
        assert {letter.dead and letter.dead.message for letter in found} == {sent.id}
        assert {letter.dead and letter.dead.attempts for letter in found} == {2}
        assert (await broker.consumer("swept")).ack_pending == 0
        assert broker.measures.dead == 2


async def test_attempts_are_used_up_by_giving_back(broker: Broker) -> None:
    """The last nak makes it a letter at once, whatever its delay; naks of a batch as well."""
    for _ in range(3):
        await publish(broker)
    await broker.ensure_consumer("c", ConsumerConfig("t", max_deliver=1, dead_letter="graveyard.c"))
    first, *others = [delivery.token for delivery in await broker.pull("c", 3)]
    await broker.nak("c", first, delay=1000)
    assert len(await letters(broker, "graveyard.*")) == 1
    assert await broker.nak_all("c", others) == [None, None]
    assert len(await letters(broker, "graveyard.c")) == 3
    assert (await broker.consumer("c")).ack_pending == 0


async def test_a_letter_is_an_ordinary_message(broker: Broker) -> None:
    """It is consumed like any other, by those who are told of it at once."""
    await publish(broker)
    await broker.ensure_consumer("c", ConsumerConfig("t"))
    await broker.ensure_consumer("reviewer", ConsumerConfig("dead.*"))
    waiting = asyncio.create_task(broker.pull("reviewer", 1, wait=30))
    await asyncio.sleep(0)
    letter = await refuse(broker)
    (delivery,) = await waiting
    assert (delivery.message, delivery.attempt) == (letter, 1)
    await broker.ack("reviewer", delivery.token)
    assert [info.id for info in (await broker.messages("dead.c")).messages] == [letter.id]


async def test_a_followed_message_is_refused_without_a_letter(broker: Broker) -> None:
    """While it is open there is nothing to keep; it is not handed over again when it is sealed."""
    await broker.ensure_consumer("c", ConsumerConfig("t"))
    upload = await broker.begin("t")
    assert isinstance(upload, Upload)
    await upload.write(body(SMALL)[:-1])
    (delivery,) = await broker.pull("c", 1, follow=True, wait=30)
    await broker.term("c", delivery.token)
    await upload.write(body(SMALL)[-1:])
    await upload.seal()
    assert await ids(broker) == []
    assert await letters(broker) == []


async def test_reasons_have_a_length(broker: Broker) -> None:
    """What a worker says is bounded, and need not be anything."""
    await publish(broker)
    await broker.ensure_consumer("c", ConsumerConfig("t"))
    delivery = await one(broker)
    with pytest.raises(InvalidRequest, match="1000"):
        await broker.term("c", delivery.token, "x" * 1001)
    await broker.term("c", delivery.token)
    assert len(await letters(broker)) == 1


# --- no loops ----------------------------------------------------------------------------------------


async def test_a_consumer_does_not_get_its_own_letters(broker: Broker) -> None:
    """A filter that matches everything does not make a message die for ever."""
    await broker.ensure_consumer("c", ConsumerConfig(">", max_deliver=1))
    await publish(broker)
    await broker.nak("c", (await one(broker)).token)
    assert await ids(broker) == []
    other = await publish(broker, topic="dead.c")
    assert await ids(broker) == [other.id]
    assert len(await letters(broker)) == 1


async def test_consumers_of_each_others_letters_come_to_an_end(broker: Broker) -> None:
    """Each can refuse a message once, in whatever form; the last letter tells of all deaths."""
    names = ("a", "b", "c")
    for name in names:
        await broker.ensure_consumer(name, ConsumerConfig(">"))
    await publish(broker)
    refused = 0
    while taken := [(n, d) for n in names for d in await broker.pull(n, 100)]:
        for name, delivery in taken:
            await broker.term(name, delivery.token)
            refused += 1
    # Every order in which one, two or three of them can refuse it: 3 + 6 + 6.
    assert refused == 15
    deepest = [m.dead for m in await letters(broker) if m.dead is not None and len(m.dead.earlier) == 2]
    assert len(deepest) == 6
    assert all(death.consumers == set(names) for death in deepest)
    assert all(death.earlier[0].topic == "t" for death in deepest)


async def test_a_letter_of_a_letter_comes_back_step_by_step(broker: Broker) -> None:
    """Replaying it makes it the letter again that it was; replaying that, the message that it was."""
    await publish(broker)
    await broker.ensure_consumer("c", ConsumerConfig("t"))
    await broker.ensure_consumer("reviewer", ConsumerConfig("dead.c"))
    first = await refuse(broker)
    second = await refuse(broker, "reviewer")
    assert second.dead is not None
    assert [death.consumer for death in (*second.dead.earlier, second.dead)] == ["c", "reviewer"]
    back = await broker.replay(second.id)
    assert (back.topic, back.dead) == ("dead.c", first.dead)
    assert await ids(broker, "reviewer") == [back.id]
    again = await broker.replay(back.id)
    assert (again.topic, again.dead) == ("t", None)
    assert await ids(broker) == [again.id]


# --- replay ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [SMALL, LARGE])
async def test_a_replayed_letter_goes_to_the_one_that_failed(
    tmp_path: Path, clock: VirtualClock, text: bytes
) -> None:
    """A new message of the old topic with the old key and frames; others do not get it, now or later."""
    async with Broker(FileStore(tmp_path), SETTINGS, clock) as broker:
        sent = await publish(broker, text, key="k")
        for name in ("c", "done", "behind"):
            await broker.ensure_consumer(name, ConsumerConfig("t"))
        await broker.ack("done", (await one(broker, "done")).token)
        letter = await refuse(broker)
        info = await broker.replay(letter.id)
        assert (info.topic, info.key, info.dead, info.headers) == ("t", "k", None, {"site": "a"})
        assert len({info.id, letter.id, sent.id}) == 3
        assert await letters(broker) == []
        with pytest.raises(NotFound):
            await broker.message(letter.id)
        delivery = await one(broker)
        assert (delivery.message, delivery.attempt) == (info, 1)
        assert await stored(broker, info.id) == body(text)
        assert (await broker.consumer("done")).backlog == 0
    async with Broker(FileStore(tmp_path), SETTINGS, clock) as broker:
        assert await ids(broker, "done") == []
        assert await ids(broker, "behind") == [sent.id]
        fresh = await publish(broker)
        for name in ("done", "behind"):
            assert await ids(broker, name) == [fresh.id]
        await broker.ack("c", delivery.token)
        assert (await broker.receipt("t", "k")).id == sent.id
    assert files(tmp_path) == ({info.id, sent.id} if text == LARGE else set())


async def test_a_letter_may_be_replayed_for_everyone(broker: Broker) -> None:
    """All consumers of the topic get the message as a new one."""
    await publish(broker)
    for name in ("c", "d"):
        await broker.ensure_consumer(name, ConsumerConfig(">"))
    await ids(broker, "d")
    letter = await refuse(broker)
    info = await broker.replay(letter.id, everyone=True)
    assert await ids(broker) == [info.id]
    assert await ids(broker, "d") == [info.id]


async def test_what_cannot_be_replayed_stays(broker: Broker) -> None:
    """An ordinary message, one that is not there, and one whose consumer is gone or changed."""
    sent = await publish(broker)
    await broker.ensure_consumer("c", ConsumerConfig("t"))
    letter = await refuse(broker)
    with pytest.raises(Conflict):
        await broker.replay(sent.id)
    with pytest.raises(NotFound):
        await broker.replay("0" * 32)
    await broker.delete_consumer("c")
    with pytest.raises(NotFound, match="everyone"):
        await broker.replay(letter.id)
    await broker.ensure_consumer("c", ConsumerConfig("other"))
    with pytest.raises(NotFound, match="everyone"):
        await broker.replay(letter.id)
    assert await letters(broker) == [letter]
    assert (await broker.replay(letter.id, everyone=True)).topic == "t"


async def test_a_purge_takes_letters_only(tmp_path: Path, clock: VirtualClock) -> None:
    """Those on matching topics; other messages on these topics stay, and the space comes back."""
    async with Broker(FileStore(tmp_path), SETTINGS, clock) as broker:
        for name in ("c", "d"):
            await broker.ensure_consumer(name, ConsumerConfig("t"))
        for _ in range(3):
            await publish(broker, LARGE)
            await refuse(broker, "c")
            await refuse(broker, "d")
        kept = await publish(broker, topic="dead.c")
        assert await broker.purge_dead_letters("dead.c") == 3
        assert [info.topic for info in await letters(broker)] == ["dead.d"] * 3
        assert [info.id for info in (await broker.messages("dead.c")).messages] == [kept.id]
        assert await broker.purge_dead_letters(">") == 3
        assert await broker.purge_dead_letters(">") == 0
        assert len(files(tmp_path)) == 3


async def test_letters_are_listed_page_by_page(broker: Broker) -> None:
    """In the order of the log, like messages."""
    await broker.ensure_consumer("c", ConsumerConfig("t"))
    made: list[str] = []
    for _ in range(3):
        await publish(broker)
        made.append((await refuse(broker)).id)
    page = await broker.dead_letters(limit=2)
    assert [info.id for info in page.messages] == made[:2]
    rest = await broker.dead_letters("dead.*", after=page.next, limit=2)
    assert ([info.id for info in rest.messages], rest.next) == (made[2:], None)


# --- with policies -----------------------------------------------------------------------------------


async def test_dying_removes_a_message_from_a_work_queue(broker: Broker) -> None:
    """The letter takes its place, and can be replayed into the queue."""
    await broker.put_policy("queue", PolicyConfig("t", retention="workqueue"))
    await publish(broker)
    await broker.ensure_consumer("c", ConsumerConfig("t"))
    letter = await refuse(broker)
    for _ in range(50):
        if not (await broker.messages("t")).messages:
            break
        await asyncio.sleep(0.01)
    assert (await broker.messages("t")).messages == ()
    again = await broker.replay(letter.id)
    assert await ids(broker) == [again.id]


@pytest.mark.parametrize("retention", ["interest", "workqueue"])
@pytest.mark.parametrize("pattern", ["t", ">"])
async def test_a_letter_waits_for_somebody_who_can_deal_with_it(
    broker: Broker, retention: Literal["interest", "workqueue"], pattern: str
) -> None:
    """That nobody is interested, or only who failed, does not remove the last that there is of a message."""
    await broker.ensure_consumer("c", ConsumerConfig(pattern))
    await broker.put_policy("all", PolicyConfig(">", retention=retention))
    await publish(broker)
    letter = await refuse(broker)
    await publish(broker)  # behind the letter
    (delivery,) = await broker.pull("c", 10)
    await broker.ack("c", delivery.token)
    await broker.sweep()
    assert [info.id for info in (await broker.messages()).messages] == [letter.id]
    if pattern == "t" or retention == "interest":
        await broker.ensure_consumer("undertaker", ConsumerConfig("dead.>"))
        (delivery,) = await broker.pull("undertaker")
        await broker.ack("undertaker", delivery.token)
        await broker.sweep()
        assert (await broker.messages()).messages == ()


async def test_letters_are_not_charged_to_the_publisher(broker: Broker) -> None:
    """Whoever may only subscribe could otherwise use up others' quotas; what is replayed is theirs again."""
    frames = body(SMALL)

    async def begin() -> Upload:
        upload = await broker.begin("t", size=len(frames), owner="a", quota=2 * len(frames))
        assert isinstance(upload, Upload)
        await upload.write(frames)
        return upload

    await (await begin()).seal()
    await broker.ensure_consumer("c", ConsumerConfig("t"))
    letter = await refuse(broker)
    await (await begin()).seal()
    with pytest.raises(QuotaExceeded):
        await begin()
    await broker.delete(letter.dead.message if letter.dead else "")
    again = await broker.replay(letter.id)
    with pytest.raises(QuotaExceeded):
        await begin()
    await broker.delete(again.id)
    await (await begin()).seal()


# --- crashes -----------------------------------------------------------------------------------------


class StopsHalfway(FileStore):
    """Stops when a letter's frames are linked and its row is not there."""

    async def bury(
        self, uid: str, position: int, delivery: StoredDelivery, letter: Copy
    ) -> MessageInfo | None:
        """Link, and no more."""
        os.link(*(self.path / "frames" / f"{name}.frames" for name in (letter.source, letter.id)))
        raise StorageError("the test says so")


async def test_a_crash_between_link_and_row_leaves_nothing(tmp_path: Path, clock: VirtualClock) -> None:
    """The file without a row is removed at the next start; the message is delivered as before."""
    async with Broker(StopsHalfway(tmp_path), SETTINGS, clock) as broker:
        sent = await publish(broker, LARGE)
        await broker.ensure_consumer("c", ConsumerConfig("t", ack_wait=10))
        delivery = await one(broker)
        with pytest.raises(StorageError):
            await broker.term("c", delivery.token)
        assert len(files(tmp_path)) == 2
    async with Broker(FileStore(tmp_path), SETTINGS, clock) as broker:
        assert files(tmp_path) == {sent.id}
        assert await letters(broker) == []
        await broker.term("c", delivery.token)
        assert len(await letters(broker)) == 1


async def test_a_failed_burial_is_tried_again(tmp_path: Path, clock: VirtualClock) -> None:
    """While the store cannot take the letter, the message stays with its consumer, and is not lost."""
    store = StopsHalfway(tmp_path)
    async with Broker(store, SETTINGS, clock) as broker:
        await publish(broker, LARGE)
        await broker.ensure_consumer("c", ConsumerConfig("t", ack_wait=10, max_deliver=1))
        await one(broker)
        clock.now += 10
        assert await ids(broker) == []
        assert (await broker.consumer("c")).ack_pending == 1
    async with Broker(FileStore(tmp_path), SETTINGS, clock) as broker:
        clock.now += 10
        await broker.sweep()
        assert len(await letters(broker)) == 1
