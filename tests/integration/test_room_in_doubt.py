"""Room is not refused because a message is counted twice while it is being listed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from tensorbus.bus.broker import Broker, BrokerSettings
from tensorbus.bus.broker.uploads import Upload
from tensorbus.bus.messages import MessageInfo, Receipt
from tensorbus.bus.policies import PolicyConfig
from tensorbus.bus.stores.file import FileStore
from tensorbus.bus.stores.values import NO_TERMS, StoredDelivery, Terms
from tensorbus.errors import QuotaExceeded
from tensorbus.streaming.raw import RawEncoder


def body(size: int) -> bytes:
    """The frames of a message."""
    encoder = RawEncoder({}, "application/octet-stream", size)
    opening = encoder.open()
    slices = b"".join(head + bytes(payload) for head, payload in encoder.slices(os.urandom(size)))
    return opening + slices + encoder.close()


SIZE = len(body(1000))


class SlowToTell(FileStore):
    """Its commits are on the disk some time before those who wait for them hear of it, if that is wanted."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.tell = asyncio.Event()
        self.tell.set()
        self.committed = asyncio.Event()

    async def seal(
        self,
        info: MessageInfo,
        followers: Sequence[StoredDelivery],
        body: bytes | None = None,
        terms: Terms = NO_TERMS,
    ) -> Receipt:
        """As always, but for the pause."""
        receipt = await super().seal(info, followers, body, terms)
        self.committed.set()
        await self.tell.wait()
        return receipt


@pytest.fixture
async def store(tmp_path: Path) -> SlowToTell:
    """The store of ``broker``."""
    return SlowToTell(tmp_path)


@pytest.fixture
async def broker(store: SlowToTell) -> AsyncIterator[Broker]:
    """A broker that keeps messages in files."""
    async with Broker(store, BrokerSettings(sweep_interval=0)) as broker:
        yield broker
        store.tell.set()  # or a test that failed would never end


async def begin(broker: Broker, size: int | None = SIZE) -> Upload:
    """A message of the topic."""
    upload = await broker.begin("a", None, size)
    assert isinstance(upload, Upload)
    return upload


async def publish(broker: Broker) -> Receipt:
    """One message."""
    async with await begin(broker) as upload:
        await upload.write(body(1000))
        return await upload.seal()


LIMITS = [
    PolicyConfig("a", max_messages=3, discard="new"),
    PolicyConfig("a", max_bytes=3 * SIZE, discard="new"),
]


@pytest.mark.parametrize("policy", LIMITS)
async def test_a_message_that_is_being_listed_counts_once(
    broker: Broker, store: SlowToTell, policy: PolicyConfig
) -> None:
    """The last place is given to who asks while another message is between its commit and its answer."""
    await broker.put_policy("p", policy)
    await publish(broker)
    store.committed.clear()
    store.tell.clear()
    second = asyncio.create_task(publish(broker))
    await store.committed.wait()
    third = asyncio.create_task(begin(broker))
    while not third.done() and not second.done():
        # It waits to hear whether there are one or two; it must not be refused meanwhile.
        await asyncio.sleep(0)
        if (await broker.stats()).messages == 2:
            store.tell.set()
    upload = await third
    await second
    with pytest.raises(QuotaExceeded):
        await begin(broker)
    async with upload:
        await upload.write(body(1000))
        await upload.seal()
    assert (await broker.stats()).messages == 3


async def test_what_grows_is_not_refused_for_it_either(broker: Broker, store: SlowToTell) -> None:
    """An upload of unknown size takes its room as it grows, also after others were looked up in between."""
    await broker.put_policy("p", PolicyConfig("a", max_bytes=3 * SIZE, discard="new"))
    growing = await begin(broker, None)
    store.committed.clear()
    store.tell.clear()
    second = asyncio.create_task(publish(broker))
    await store.committed.wait()
    async with await begin(broker, 10):
        pass  # it looks up what is stored, which has the second one already
    async with growing:
        await growing.write(body(1000 + SIZE // 2))
        await growing.flush()
        store.tell.set()
        await second
        await growing.seal()


async def test_a_storm_at_the_limit_fills_it_exactly(broker: Broker) -> None:
    """Hundreds at once for fewer places: as many are stored as there are, and nobody is refused before."""
    await broker.put_policy("p", PolicyConfig("a", max_messages=150, discard="new"))

    async def some(count: int) -> int:
        stored = 0
        for _ in range(count):
            try:
                await publish(broker)
                stored += 1
            except QuotaExceeded:
                being_published = len((await broker.messages(state="open")).messages)
                assert (await broker.stats()).messages + being_published >= 150
        return stored

    assert sum(await asyncio.gather(*(some(6) for _ in range(50)))) == 150
