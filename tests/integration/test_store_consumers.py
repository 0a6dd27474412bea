"""Durable consumers on a real broker and disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tensorbus.bus.broker import Broker
from tensorbus.bus.broker.uploads import Upload
from tensorbus.bus.consumers import ConsumerConfig, DeliveryInfo
from tensorbus.bus.stores.file import FileStore
from tensorbus.bus.stores.values import HandedOver, HandOver
from tensorbus.errors import AlreadySettled, Conflict, InvalidName, InvalidRequest, MessageAborted, NotFound
from tensorbus.streaming.raw import RawEncoder

LONG = 30.0
"""Seconds that a test never waits for: what it waits for comes earlier, or the test fails."""


def body(text: bytes = b"hello") -> bytes:
    """The frames of a small message."""
    encoder = RawEncoder({"text": text.decode()}, "text/plain", len(text))
    opening = encoder.open()
    slices = b"".join(head + bytes(payload) for head, payload in encoder.slices(text))
    return opening + slices + encoder.close()


async def publish(broker: Broker, topic: str = "fl.sft.updates") -> str:
    """Publish a small message; its id."""
    upload = await opened(broker, topic)
    return await finish(upload)


async def opened(broker: Broker, topic: str = "fl.sft.updates") -> Upload:
    """A message that is half there; a follower may have it."""
    upload = await broker.begin(topic)
    assert isinstance(upload, Upload)
    await upload.write(memoryview(body()[:-1]))
    return upload


async def finish(upload: Upload) -> str:
    """The rest of it."""
    await upload.write(body()[-1:])
    return (await upload.seal()).id


async def one(broker: Broker, name: str = "c", wait: float = LONG, follow: bool = False) -> DeliveryInfo:
    """The next delivery."""
    (delivery,) = await broker.pull(name, 1, wait, follow)
    return delivery


async def ids(broker: Broker, name: str = "c", limit: int = 100) -> list[str]:
    """Messages of what can be pulled now."""
    return [delivery.message.id for delivery in await broker.pull(name, limit)]


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    """A running broker on an empty directory."""
    async with Broker(FileStore(tmp_path)) as running:
        yield running


# --- what is delivered -------------------------------------------------------------------------------


async def test_matching_messages_come_in_order_of_their_seq(broker: Broker) -> None:
    """A consumer gets its filter's messages, each once, oldest first."""
    a = await publish(broker, "fl.a.updates")
    await publish(broker, "fl.a.model")
    b = await publish(broker, "fl.b.updates")
    await broker.ensure_consumer("c", ConsumerConfig("fl.*.updates"))
    assert await ids(broker, limit=1) == [a]
    assert await ids(broker) == [b]
    assert await ids(broker) == []
    c = await publish(broker, "fl.c.updates")
    assert await ids(broker) == [c]
    assert (await broker.consumer("c")).ack_pending == 3


async def test_a_consumer_may_start_with_what_is_new(broker: Broker) -> None:
    """What was sealed before its creation is not for it; what was open then is."""
    await publish(broker)
    half = await opened(broker)
    await broker.ensure_consumer("c", ConsumerConfig(">", start="new"))
    assert await ids(broker) == []
    sent = await finish(half)
    assert await ids(broker) == [sent]


async def test_workers_share_a_consumer(broker: Broker) -> None:
    """Pulls at the same time never hand over one message twice."""
    sent = [await publish(broker) for _ in range(20)]
    await broker.ensure_consumer("c", ConsumerConfig(">"))
    got = await asyncio.gather(*(broker.pull("c", 3) for _ in range(10)))
    assert sorted(delivery.message.id for part in got for delivery in part) == sorted(sent)


async def test_consumers_are_independent(broker: Broker) -> None:
    """An ack of one is nothing to the other."""
    sent = await publish(broker)
    for name in ("c", "d"):
        await broker.ensure_consumer(name, ConsumerConfig(">"))
    first = await one(broker, "c")
    await broker.ack("c", first.token)
    second = await one(broker, "d")
    assert (second.message.id, second.attempt) == (sent, 1)


async def test_no_more_than_max_ack_pending_are_in_flight(broker: Broker) -> None:
    """A slow group of workers is not flooded; each settlement makes room."""
    sent = [await publish(broker) for _ in range(4)]
    await broker.ensure_consumer("c", ConsumerConfig(">", max_ack_pending=2))
    first, second = await broker.pull("c", 10)
    waiting = asyncio.create_task(one(broker))
    await broker.ack("c", first.token)
    assert (await waiting).message.id == sent[2]
    info = await broker.consumer("c")
    assert (info.ack_pending, info.backlog) == (2, 1)
    await broker.term("c", second.token)
    assert await ids(broker) == [sent[3]]


async def test_a_pull_waits_for_the_next_message(broker: Broker) -> None:
    """A long poll returns as soon as something is sealed."""
    await broker.ensure_consumer("c", ConsumerConfig("fl.>"))
    waiting = asyncio.create_task(one(broker))
    await asyncio.sleep(0)
    await publish(broker, "other.topic")
    assert not waiting.done()
    sent = await publish(broker)
    assert (await waiting).message.id == sent
    assert await broker.pull("c", 1, 0.01) == []


class SlowStore(FileStore):
    """The real store, whose first hand-over waits for ``go``."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.reached = asyncio.Event()
        self.go = asyncio.Event()

    async def take(self, wanted: HandOver) -> HandedOver:
        """Wait, then commit."""
        self.reached.set()
        await self.go.wait()
        return await super().take(wanted)


async def test_a_pull_that_is_given_up_keeps_nothing(tmp_path: Path) -> None:
    """What was taken for a worker who is gone goes to the next one at once, as if it had never been taken."""
    store = SlowStore(tmp_path)
    async with Broker(store) as broker:
        sent = await publish(broker)
        await broker.ensure_consumer("c", ConsumerConfig(">", ack_wait=10 * LONG))
        pull = asyncio.create_task(one(broker))
        await store.reached.wait()
        pull.cancel()
        await asyncio.wait([pull])
        assert pull.cancelled()
        store.go.set()
        delivery = await one(broker)
        assert (delivery.message.id, delivery.attempt) == (sent, 1)


# --- settlements -------------------------------------------------------------------------------------


async def test_an_ack_is_final_and_survives_a_restart(tmp_path: Path) -> None:
    """What was acknowledged is not delivered again, whatever happens to the broker."""
    async with Broker(FileStore(tmp_path)) as broker:
        sent = [await publish(broker) for _ in range(3)]
        await broker.ensure_consumer("c", ConsumerConfig(">", ack_wait=0.05))
        first, second = await broker.pull("c", 2)
        await broker.ack("c", first.token)
    async with Broker(FileStore(tmp_path)) as broker:
        again = [await one(broker), await one(broker)]
        assert {delivery.message.id for delivery in again} == set(sent[1:])
        for delivery in again:
            await broker.ack("c", delivery.token)
        for token in (first.token, second.token):
            with pytest.raises(AlreadySettled):
                await broker.ack("c", token)
    async with Broker(FileStore(tmp_path)) as broker:
        assert await broker.pull("c", 10, 0.1) == []


async def test_acks_at_once_are_all_durable(tmp_path: Path) -> None:
    """Group commit loses none of its group."""
    async with Broker(FileStore(tmp_path)) as broker:
        await broker.ensure_consumer("c", ConsumerConfig(">", ack_wait=0.05))
        await asyncio.gather(*(publish(broker) for _ in range(40)))
        deliveries = await broker.pull("c", 40)
        await asyncio.gather(*(broker.ack("c", delivery.token) for delivery in deliveries))
    async with Broker(FileStore(tmp_path)) as broker:
        assert len(deliveries) == 40
        assert await broker.pull("c", 40, 0.1) == []


async def test_after_a_restart_consumers_are_where_they_were(tmp_path: Path) -> None:
    """Position, unacknowledged deliveries and their attempts are kept, and tokens stay valid."""
    async with Broker(FileStore(tmp_path)) as broker:
        sent = [await publish(broker) for _ in range(3)]
        await broker.ensure_consumer("c", ConsumerConfig(">"))
        first = await one(broker)
        await broker.nak("c", first.token)
        again = await one(broker)
        assert (again.message.id, again.attempt) == (sent[0], 2)
    async with Broker(FileStore(tmp_path)) as broker:
        info, created = await broker.ensure_consumer("c", ConsumerConfig(">"))
        assert (created, info.ack_pending, info.backlog) == (False, 1, 2)
        assert await ids(broker) == sent[1:]
        await broker.nak("c", again.token)
        third = await one(broker)
        assert (third.message.id, third.attempt) == (sent[0], 3)


async def test_an_unsettled_delivery_comes_again_after_ack_wait(broker: Broker) -> None:
    """A worker that died holds a message no longer than that; its token is then worth nothing."""
    sent = await publish(broker)
    await broker.ensure_consumer("c", ConsumerConfig(">", ack_wait=0.05))
    first = await one(broker)
    second = await one(broker)
    assert (second.message.id, first.attempt, second.attempt) == (sent, 1, 2)
    assert first.token != second.token
    with pytest.raises(AlreadySettled, match="another worker"):
        await broker.ack("c", first.token)
    with pytest.raises(AlreadySettled):
        await broker.in_progress("c", first.token)


async def test_in_progress_keeps_a_delivery_with_its_worker(broker: Broker) -> None:
    """Work may take longer than ack_wait as long as the worker says that it goes on."""
    await publish(broker)
    await broker.ensure_consumer("c", ConsumerConfig(">", ack_wait=0.4))
    delivery = await one(broker)
    for _ in range(4):
        assert await broker.pull("c", 1, 0.15) == []
        await broker.in_progress("c", delivery.token)
    await broker.ack("c", delivery.token)


async def test_nak_gives_back_now_or_later(broker: Broker) -> None:
    """Without a delay the next pull has it; with one, nobody has it before."""
    sent = await publish(broker)
    await broker.ensure_consumer("c", ConsumerConfig(">"))
    delivery = await one(broker, wait=0)
    await broker.nak("c", delivery.token)
    delivery = await one(broker, wait=0)
    assert (delivery.message.id, delivery.attempt) == (sent, 2)
    await broker.nak("c", delivery.token, delay=0.1)
    assert await broker.pull("c", 1) == []
    assert (await one(broker)).attempt == 3
    with pytest.raises(InvalidRequest):
        await broker.nak("c", delivery.token, delay=-1)


async def test_a_delivery_is_settled_once(broker: Broker) -> None:
    """The second settlement is refused, also when both come at the same time."""
    await publish(broker)
    await broker.ensure_consumer("c", ConsumerConfig(">"))
    delivery = await one(broker)
    outcomes = await asyncio.gather(
        *(broker.ack("c", delivery.token) for _ in range(3)), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes].count(AlreadySettled) == 2
    await publish(broker)
    given_back = await one(broker)
    await broker.nak("c", given_back.token, delay=LONG)
    for token in (delivery.token, given_back.token):
        for settle in (broker.ack, broker.nak, broker.term, broker.in_progress):
            with pytest.raises(AlreadySettled):
                await settle("c", token)


async def test_a_token_of_another_consumer_is_unknown(broker: Broker) -> None:
    """Nor is one that was made up, or one of an earlier consumer of the same name."""
    await publish(broker)
    for name in ("c", "d"):
        await broker.ensure_consumer(name, ConsumerConfig(">"))
    delivery = await one(broker)
    for name, token in (("d", delivery.token), ("c", "nonsense"), ("c", delivery.token + "1"), ("e", "x")):
        with pytest.raises(NotFound):
            await broker.ack(name, token)
    await broker.delete_consumer("c")
    await broker.ensure_consumer("c", ConsumerConfig(">"))
    assert (await one(broker)).attempt == 1
    with pytest.raises(NotFound):
        await broker.ack("c", delivery.token)


async def test_a_deleted_message_is_delivered_no_more(broker: Broker) -> None:
    """Neither one that waits, nor one that is to come again."""
    first, second, third = [await publish(broker) for _ in range(3)]
    await broker.ensure_consumer("c", ConsumerConfig(">", max_ack_pending=1))
    delivery = await one(broker)
    await broker.delete(first)
    await broker.delete(second)
    assert await ids(broker) == [third]
    with pytest.raises(AlreadySettled):
        await broker.ack("c", delivery.token)


# --- consumers themselves ----------------------------------------------------------------------------


async def test_a_consumer_is_made_once(broker: Broker) -> None:
    """The same configuration finds it, another one is a conflict that says what differs."""
    config = ConsumerConfig("fl.>", ack_wait=5)
    assert (await broker.ensure_consumer("c", config))[1] is True
    assert (await broker.ensure_consumer("c", config))[1] is False
    with pytest.raises(Conflict, match="ack_wait 5"):
        await broker.ensure_consumer("c", ConsumerConfig("fl.>", ack_wait=6))
    for name, bad in (("a/b", config), ("x", ConsumerConfig("a..b"))):
        with pytest.raises(InvalidName):
            await broker.ensure_consumer(name, bad)
    with pytest.raises(InvalidRequest):
        await broker.ensure_consumer("x", ConsumerConfig(">", max_ack_pending=0))
    assert [info.name for info in await broker.consumers()] == ["c"]


async def test_deleting_a_consumer_ends_its_pulls(broker: Broker) -> None:
    """A worker that waits learns that it waits for nothing."""
    await broker.ensure_consumer("c", ConsumerConfig(">"))
    waiting = asyncio.create_task(broker.pull("c", 1, LONG))
    await asyncio.sleep(0)
    await broker.delete_consumer("c")
    with pytest.raises(NotFound):
        await waiting
    with pytest.raises(NotFound):
        await broker.pull("c")


async def test_closing_the_broker_ends_pulls_and_uploads(tmp_path: Path) -> None:
    """A stop is not held up by those who wait."""
    broker = Broker(FileStore(tmp_path))
    await broker.start()
    await broker.ensure_consumer("c", ConsumerConfig("other"))
    upload = await opened(broker)
    waiting = asyncio.create_task(broker.pull("c", 1, LONG))
    await asyncio.sleep(0.01)
    await broker.close()
    assert await waiting == []
    with pytest.raises(MessageAborted, match="shuts down"):
        await upload.write(b"x")


# --- following ---------------------------------------------------------------------------------------


async def test_an_open_message_is_delivered_to_followers_and_once(broker: Broker) -> None:
    """Its delivery goes on when it is sealed: it is not delivered a second time, and can be acknowledged."""
    await broker.ensure_consumer("c", ConsumerConfig(">"))
    waiting = asyncio.create_task(one(broker, follow=True))
    await asyncio.sleep(0)
    upload = await opened(broker)
    delivery = await waiting
    assert (delivery.message.id, delivery.message.state, delivery.message.seq) == (upload.id, "open", None)
    with pytest.raises(Conflict, match="still being published"):
        await broker.ack("c", delivery.token)
    await finish(upload)
    assert await ids(broker) == []
    await broker.ack("c", delivery.token)
    assert (await broker.consumer("c")).ack_pending == 0


async def test_without_follow_an_open_message_is_not_delivered(broker: Broker) -> None:
    """A message that may yet be aborted is only for those who ask for it."""
    await broker.ensure_consumer("c", ConsumerConfig(">"))
    upload = await opened(broker)
    assert await ids(broker) == []
    sent = await finish(upload)
    assert await ids(broker) == [sent]


async def test_a_followed_message_that_is_aborted_vanishes(broker: Broker) -> None:
    """It neither comes again nor takes up room."""
    await broker.ensure_consumer("c", ConsumerConfig(">", max_ack_pending=1))
    upload = await opened(broker)
    delivery = await one(broker, follow=True)
    await upload.abort("the test says so")
    assert (await broker.consumer("c")).ack_pending == 0
    with pytest.raises(AlreadySettled):
        await broker.nak("c", delivery.token)
    assert await ids(broker) == []


async def test_a_followed_message_is_pending_after_a_restart(tmp_path: Path) -> None:
    """Its hand-over was committed together with the message."""
    async with Broker(FileStore(tmp_path)) as broker:
        await broker.ensure_consumer("c", ConsumerConfig(">"))
        upload = await opened(broker)
        delivery = await one(broker, follow=True)
        earlier = await publish(broker)
        sent = await finish(upload)
        assert await ids(broker) == [earlier]
    async with Broker(FileStore(tmp_path)) as broker:
        assert await ids(broker) == []
        await broker.nak("c", delivery.token)
        again = await one(broker)
        assert (again.message.id, again.attempt) == (sent, 2)


async def test_a_followed_message_that_was_refused_does_not_come_back(tmp_path: Path) -> None:
    """Refused while open, it stays refused when it is sealed and when the broker restarts."""
    async with Broker(FileStore(tmp_path)) as broker:
        await broker.ensure_consumer("c", ConsumerConfig(">"))
        upload = await opened(broker)
        await broker.term("c", (await one(broker, follow=True)).token)
        await finish(upload)
    async with Broker(FileStore(tmp_path)) as broker:
        assert await ids(broker) == []
        assert (await broker.consumer("c")).backlog == 0


async def test_a_followed_message_that_is_given_back_waits_for_its_seal(broker: Broker) -> None:
    """Or for another follower."""
    await broker.ensure_consumer("c", ConsumerConfig(">"))
    upload = await opened(broker)
    await broker.nak("c", (await one(broker, follow=True)).token)
    again = await one(broker, follow=True)
    assert again.attempt == 2
    await broker.nak("c", again.token)
    waiting = asyncio.create_task(one(broker))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    await finish(upload)
    assert (await waiting).attempt == 3


async def test_a_message_acknowledged_ahead_of_older_ones_stays_so(tmp_path: Path) -> None:
    """Followed and sealed while others were not yet handed over: the position has yet to pass it."""
    async with Broker(FileStore(tmp_path)) as broker:
        await broker.ensure_consumer("c", ConsumerConfig(">"))
        upload = await opened(broker)
        delivery = await one(broker, follow=True)
        earlier = await publish(broker)
        await finish(upload)
        await broker.ack("c", delivery.token)
    async with Broker(FileStore(tmp_path)) as broker:
        assert (await broker.consumer("c")).backlog == 1
        assert await ids(broker) == [earlier]


async def test_a_backlog_is_the_same_however_it_is_counted(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a long log the topics are matched once each, of a short one each message's."""
    for number in range(12):
        await publish(broker, f"fl.{number % 4}.{'updates' if number % 2 else 'models'}")
    patterns = (">", "fl.*.updates", "fl.1.>", "fl.3.updates", "*.nothing")

    async def counted() -> list[int]:
        for pattern in patterns:
            await broker.ensure_consumer(f"c{patterns.index(pattern)}", ConsumerConfig(pattern, start=3))
        return [info.backlog for info in await broker.consumers()]

    short = await counted()
    monkeypatch.setattr("tensorbus.bus.stores.message_rows._MATCHED_ONE_BY_ONE", 0)
    assert await counted() == short == [10, 5, 2, 3, 0]
