"""Redelivery, starts, batches and expiry of consumers, on a real broker and disk, and on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tensorbus.bus.broker import Broker, BrokerSettings
from tensorbus.bus.broker.uploads import Upload
from tensorbus.bus.consumers import ConsumerConfig, DeliveryInfo
from tensorbus.bus.messages import MessageInfo, Receipt
from tensorbus.bus.stores.base import Copy, HandedOver, HandOver, StoredDelivery
from tensorbus.bus.stores.file import FileStore
from tensorbus.errors import AlreadySettled, Conflict, InvalidName, InvalidRequest, NotFound
from tensorbus.streaming.raw import RawEncoder

BEGIN = 1_750_000_000.0
"""When virtual time begins, in seconds since the epoch."""


class VirtualClock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def wall(self) -> float:
        """Seconds since the epoch."""
        return BEGIN + self.now

    def monotonic(self) -> float:
        """Seconds."""
        return self.now


def body(text: bytes = b"hello") -> bytes:
    """The frames of a small message."""
    encoder = RawEncoder({}, "text/plain", len(text))
    opening = encoder.open()
    slices = b"".join(head + bytes(payload) for head, payload in encoder.slices(text))
    return opening + slices + encoder.close()


async def publish(broker: Broker, topic: str = "t", text: bytes = b"hello") -> Receipt:
    """Publish a small message."""
    frames = body(text)
    upload = await broker.begin(topic, size=len(frames))
    assert isinstance(upload, Upload)
    await upload.write(frames)
    return await upload.seal()


async def one(broker: Broker, name: str = "c", inline: int = 0) -> DeliveryInfo:
    """The next delivery, which is there."""
    (delivery,) = await broker.pull(name, 1, inline=inline)
    return delivery


async def ids(broker: Broker, name: str = "c") -> list[str]:
    """Messages of what can be pulled now."""
    return [delivery.message.id for delivery in await broker.pull(name, 100)]


SETTINGS = BrokerSettings(sweep_interval=0)


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
