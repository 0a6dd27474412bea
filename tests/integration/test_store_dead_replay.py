"""Dead letters on a real broker and disk: how they come back, and what policies make of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import pytest

from storing import frames_left
from storing.letters import LARGE, SETTINGS, SMALL, body, ids, letters, one, publish, refuse, stored
from storing.virtual import VirtualClock
from tensorbus.bus.broker import Broker
from tensorbus.bus.broker.uploads import Upload
from tensorbus.bus.consumers import ConsumerConfig
from tensorbus.bus.policies import PolicyConfig
from tensorbus.bus.stores.file import FileStore
from tensorbus.errors import Conflict, NotFound, QuotaExceeded


@pytest.fixture
def clock() -> VirtualClock:
    """Virtual time."""
    return VirtualClock()


@pytest.fixture
async def broker(tmp_path: Path, clock: VirtualClock) -> AsyncIterator[Broker]:
    """A running broker on an empty directory and on virtual time."""
    async with Broker(FileStore(tmp_path), SETTINGS, clock) as running:
        yield running


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
    await frames_left.becomes(tmp_path, {info.id, sent.id} if text == LARGE else ())


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
        assert len(await frames_left.ids(tmp_path)) == 3


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
