"""Where consumers begin, what they keep, and in which order they are served, on a real broker and disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from storing.delivered import SETTINGS, ids, one, publish
from storing.virtual import BEGIN, VirtualClock
from tensorbus.bus.broker import Broker
from tensorbus.bus.consumers import ConsumerConfig, DeliveryInfo
from tensorbus.bus.messages import MessageInfo, Receipt
from tensorbus.bus.stores.file import FileStore
from tensorbus.bus.stores.values import Copy, HandedOver, HandOver, StoredDelivery
from tensorbus.errors import Conflict, InvalidName, InvalidRequest


@pytest.fixture
def clock() -> VirtualClock:
    """Virtual time."""
    return VirtualClock()


@pytest.fixture
async def broker(tmp_path: Path, clock: VirtualClock) -> AsyncIterator[Broker]:
    """A running broker on an empty directory and on virtual time."""
    async with Broker(FileStore(tmp_path), SETTINGS, clock) as running:
        yield running


# --- where it begins ---------------------------------------------------------------------------------


async def test_a_consumer_may_start_at_a_message(broker: Broker) -> None:
    """The message with that seq is the first; what comes later is not left out, nor what is not there yet."""
    receipts = [await publish(broker) for _ in range(4)]
    await broker.ensure_consumer("c", ConsumerConfig(">", start=receipts[2].seq))
    assert await ids(broker) == [receipts[2].id, receipts[3].id]
    await broker.ensure_consumer("later", ConsumerConfig(">", start=receipts[3].seq + 2))
    await publish(broker)
    assert await ids(broker, "later") == []
    wanted = await publish(broker)
    assert await ids(broker, "later") == [wanted.id]


async def test_a_consumer_may_start_at_a_time(broker: Broker, clock: VirtualClock) -> None:
    """The first message sealed then or later is the first; a time without messages is like "new"."""
    await publish(broker)
    clock.now += 10
    second = await publish(broker)
    clock.now += 10
    third = await publish(broker)
    clock.now += 10
    moment = datetime.fromtimestamp(BEGIN + 10, UTC)
    await broker.ensure_consumer("c", ConsumerConfig(">", start=moment))
    assert await ids(broker) == [second.id, third.id]
    await broker.ensure_consumer("late", ConsumerConfig(">", start=moment + timedelta(seconds=15)))
    assert await ids(broker, "late") == []
    fourth = await publish(broker)
    assert await ids(broker, "late") == [fourth.id]
    with pytest.raises(InvalidRequest, match="future"):
        await broker.ensure_consumer("d", ConsumerConfig(">", start=moment + timedelta(hours=1)))


async def test_a_rare_topic_is_found_in_a_long_log(broker: Broker) -> None:
    """A filter with wildcards gets its few messages in order, however many others lie between them."""
    for _ in range(5):
        await asyncio.gather(*(publish(broker, "noise.x") for _ in range(500)))
        await publish(broker, "rare.x")
    await broker.ensure_consumer("c", ConsumerConfig("rare.*"))
    await broker.ensure_consumer("none", ConsumerConfig("nothing.*"))
    got: list[DeliveryInfo] = []
    while taken := await broker.pull("c", 10):
        got += taken
    seqs = [delivery.message.seq or 0 for delivery in got]
    assert len(got) == 5
    assert seqs == sorted(seqs)
    assert await ids(broker, "none") == []
    waiting = asyncio.create_task(broker.pull("none", 1, 30))
    await asyncio.sleep(0)
    sent = await publish(broker, "nothing.y")
    assert [delivery.message.id for delivery in await waiting] == [sent.id]


# --- the configuration -------------------------------------------------------------------------------


async def test_a_configuration_lasts(tmp_path: Path, clock: VirtualClock) -> None:
    """Every setting is there after a restart, and another one is a conflict that names it."""
    config = ConsumerConfig(
        "fl.*.updates",
        start=datetime.fromtimestamp(BEGIN - 5, UTC),
        ack_wait=5,
        max_ack_pending=7,
        backoff=(1, 2.5),
        max_deliver=3,
        dead_letter="graveyard.x",
        inactive_threshold=77,
    )
    async with Broker(FileStore(tmp_path), SETTINGS, clock) as broker:
        info, created = await broker.ensure_consumer("c", config)
        assert (created, info.config) == (True, config)
        assert info.from_json(info.to_json()) == info
    async with Broker(FileStore(tmp_path), SETTINGS, clock) as broker:
        info, created = await broker.ensure_consumer("c", config)
        assert (created, info.config) == (False, config)
        for name, value in {"start": 4, "backoff": [1], "max_deliver": 4, "dead_letter": None}.items():
            start = {"seq": value} if name == "start" else value
            other = ConsumerConfig.from_json(config.to_json() | {name: start})
            with pytest.raises(Conflict, match=name):
                await broker.ensure_consumer("c", other)


@pytest.mark.parametrize(
    "bad",
    [
        {"start": "later"},
        {"start": {"seq": 0}},
        {"start": {"seq": 1, "time": "2026-01-01T00:00:00Z"}},
        {"start": {}},
        {"start": {"time": "yesterday"}},
        {"start": {"time": "2026-01-01T00:00:00"}},
        {"backoff": 5},
        {"backoff": [0]},
        {"backoff": ["1"]},
        {"backoff": [1] * 65},
        {"backoff": [1, 2, 3], "max_deliver": 2},
        {"max_deliver": 0},
        {"max_deliver": -1},
        {"max_deliver": True},
        {"dead_letter": "a..b"},
        {"dead_letter": "dead.>"},
        {"inactive_threshold": 0},
        {"inactive_threshold": float("inf")},
    ],
)
async def test_settings_out_of_their_bounds_are_refused(bad: dict[str, object]) -> None:
    """A clear error, before anything is made."""
    with pytest.raises((InvalidRequest, InvalidName)):
        ConsumerConfig.from_json({"filter": ">"} | bad)


# --- order -------------------------------------------------------------------------------------------


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[Broker]:
    """A broker on real time, for pulls that wait a little."""
    async with Broker(FileStore(tmp_path / "real")) as running:
        yield running


async def test_a_publisher_is_kept_in_order(real: Broker) -> None:
    """What is published after a receipt has a higher seq and is first delivered after it.

    Also when many publish at the same time, whose messages share their transactions, and several workers pull
    meanwhile; a message that was given back may come again later, but not for the first time.
    """
    await real.ensure_consumer("c", ConsumerConfig("p.*", max_ack_pending=10_000))
    sent: dict[str, list[Receipt]] = {}
    first_seen: list[str] = []
    publishers, each = 8, 25

    async def publisher(topic: str) -> None:
        receipts = sent.setdefault(topic, [])
        for _ in range(each):
            receipts.append(await publish(real, topic))

    async def worker(chance: int) -> None:
        while len(first_seen) < publishers * each:
            for delivery in await real.pull("c", chance, wait=0.01):
                if delivery.attempt == 1:
                    first_seen.append(delivery.message.id)
                    if len(first_seen) % 7 == 0:
                        await real.nak("c", delivery.token)
                        continue
                await real.ack("c", delivery.token)

    await asyncio.gather(
        *(publisher(f"p.{number}") for number in range(publishers)), *(worker(n) for n in (1, 3, 10))
    )
    place = {message_id: number for number, message_id in enumerate(first_seen)}
    for receipts in sent.values():
        seqs = [receipt.seq for receipt in receipts]
        places = [place[receipt.id] for receipt in receipts]
        assert seqs == sorted(seqs)
        assert len(set(places)) == each


async def test_first_deliveries_are_in_the_order_of_the_log(real: Broker) -> None:
    """Pull by pull, each takes what comes next in the log, though messages arrive all the time."""
    await real.ensure_consumer("c", ConsumerConfig(">", max_ack_pending=10_000))
    seqs: list[int] = []

    async def worker() -> None:
        while len(seqs) < 120:
            seqs.extend(d.message.seq or 0 for d in await real.pull("c", 5, wait=0.01))

    await asyncio.gather(worker(), *(publish(real, f"t.{number}") for number in range(120)))
    assert seqs == sorted(seqs)


# --- races between what is noted and what is settled -------------------------------------------------


class OvertakenStore(FileStore):
    """When it has buried, another worker gets and acknowledges what was given back, before that is noted."""

    broker: Broker
    acking: asyncio.Task[None] | None = None

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.settled, self.noted = asyncio.Event(), asyncio.Event()

    async def bury(
        self, uid: str, position: int, delivery: StoredDelivery, letter: Copy
    ) -> MessageInfo | None:
        """In the midst of a nak."""
        info = await super().bury(uid, position, delivery, letter)
        again = await one(self.broker)
        self.acking = asyncio.create_task(self.broker.ack("c", again.token))
        await self.settled.wait()
        return info

    async def settle(self, uid: str, position: int, deliveries: Sequence[StoredDelivery]) -> None:
        """It is committed, and nobody has heard of it yet."""
        await super().settle(uid, position, deliveries)
        self.settled.set()
        await self.noted.wait()


async def test_a_late_note_does_not_undo_an_ack(tmp_path: Path, clock: VirtualClock) -> None:
    """What was given back, handed out again and acknowledged stays so, also after a restart."""
    store = OvertakenStore(tmp_path)
    async with Broker(store, SETTINGS, clock) as broker:
        store.broker = broker
        await broker.ensure_consumer("c", ConsumerConfig(">", ack_wait=30, max_deliver=1))
        given_back, spent = await publish(broker), await publish(broker)
        first, _ = await broker.pull("c", 2)
        clock.now = 29
        await broker.in_progress("c", first.token)
        clock.now = 31  # the other one is over, and is buried by the next call
        await broker.nak("c", first.token, unread=True)
        store.noted.set()
        assert store.acking is not None
        await store.acking
    async with Broker(FileStore(tmp_path), SETTINGS, clock) as broker:
        clock.now = 1000
        assert await ids(broker) == []
        letters = (await broker.dead_letters()).messages
        assert [letter.dead and letter.dead.message for letter in letters] == [spent.id]
        assert given_back.id != spent.id


async def test_what_nobody_waited_for_counts_no_attempt_after_a_restart(
    tmp_path: Path, clock: VirtualClock
) -> None:
    """A worker that leaves while it pulls has seen nothing; its attempt may have been the last one."""

    class Slow(FileStore):
        leave: asyncio.Event

        async def take(self, wanted: HandOver) -> HandedOver:
            found = await super().take(wanted)
            self.leave.set()
            await asyncio.sleep(0)
            return found

    store = Slow(tmp_path)
    store.leave = asyncio.Event()
    async with Broker(store, SETTINGS, clock) as broker:
        await broker.ensure_consumer("c", ConsumerConfig(">", max_deliver=1))
        receipt = await publish(broker)
        pulling = asyncio.create_task(broker.pull("c"))
        await store.leave.wait()
        pulling.cancel()
        await asyncio.wait([pulling])
    async with Broker(FileStore(tmp_path), SETTINGS, clock) as broker:
        clock.now = 1000
        assert await ids(broker) == [receipt.id]
        assert (await broker.dead_letters()).messages == ()
