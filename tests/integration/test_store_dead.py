"""Dead letters on a real broker and disk: what cannot be dealt with is kept and told of."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storing import frames_left
from storing.letters import LARGE, SETTINGS, SMALL, body, ids, letters, one, publish, refuse, stored
from storing.virtual import VirtualClock
from tensorbus.bus.broker import Broker
from tensorbus.bus.broker.uploads import Upload
from tensorbus.bus.consumers import ConsumerConfig
from tensorbus.bus.messages import MessageInfo
from tensorbus.bus.stores.file import FileStore
from tensorbus.bus.stores.values import Copy, StoredDelivery
from tensorbus.errors import AlreadySettled, InvalidRequest, StorageError


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
        await frames_left.becomes(tmp_path, ())


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
        assert len(await frames_left.ids(tmp_path)) == 2
    async with Broker(FileStore(tmp_path), SETTINGS, clock) as broker:
        await frames_left.becomes(tmp_path, {sent.id})
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
