"""What is removed gives its space back, and nothing costs more because more is stored."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tensorbus.bus.broker import Broker, BrokerSettings
from tensorbus.bus.broker.uploads import Upload
from tensorbus.bus.consumers import ConsumerConfig
from tensorbus.bus.messages import MessageInfo, Receipt
from tensorbus.bus.policies import PolicyConfig
from tensorbus.bus.stores.file import FileStore
from tensorbus.streaming.raw import RawEncoder

MIB = 1 << 20
SETTINGS = BrokerSettings(sweep_interval=0)


def body(size: int) -> bytes:
    """The frames of a message."""
    encoder = RawEncoder({}, "application/octet-stream", size)
    opening = encoder.open()
    slices = b"".join(head + bytes(payload) for head, payload in encoder.slices(os.urandom(size)))
    return opening + slices + encoder.close()


async def publish(broker: Broker, topic: str, size: int) -> Receipt:
    """Publish a message."""
    frames = body(size)
    upload = await broker.begin(topic, size=len(frames))
    assert isinstance(upload, Upload)
    async with upload:
        await upload.write(frames)
        return await upload.seal()


def taken(folder: Path) -> int:
    """Bytes that a folder takes on the disk, hard links counted once."""
    blocks: dict[int, int] = {}
    for path in folder.rglob("*"):
        found = path.lstat()
        blocks[found.st_ino] = found.st_blocks * 512
    return sum(blocks.values())


@pytest.mark.parametrize("size", [50_000, 300_000], ids=["rows", "files"])
async def test_space_is_given_back(tmp_path: Path, size: int) -> None:
    """Thirty megabytes are there, are deleted, and the directory is small again while the broker runs."""
    async with Broker(FileStore(tmp_path), SETTINGS) as broker:
        for _ in range(30 * MIB // size):
            await publish(broker, "t", size)
        assert taken(tmp_path) > 30 * MIB
        for message in (await broker.messages(limit=1000)).messages:
            await broker.delete(message.id)
        await broker.sweep()
        await broker.sweep()
        assert taken(tmp_path) < 6 * MIB
        assert (await publish(broker, "t", size)).seq == 30 * MIB // size + 1


async def test_the_log_does_not_grow_without_end(tmp_path: Path) -> None:
    """A hundred megabytes go through it; nobody sweeps."""
    async with Broker(FileStore(tmp_path), SETTINGS) as broker:
        await broker.put_policy("p", PolicyConfig("t", max_messages=10))
        for _ in range(2000):
            await publish(broker, "t", 50_000)
        assert (tmp_path / "meta.db-wal").stat().st_size < 40 * MIB


class Steps:
    """Counts what SQLite does, in steps of its machine."""

    def __init__(self, store: FileStore) -> None:
        self._steps = 0
        for connection in _connections(store):
            connection.set_progress_handler(self._step, 1)

    def _step(self) -> int:
        self._steps += 1
        return 0

    async def of(self, work: Callable[[], Awaitable[object]]) -> int:
        """Steps that ``work`` takes."""
        before = self._steps
        await work()
        return self._steps - before


def _connections(store: FileStore) -> list[sqlite3.Connection]:
    """Those that serve the broker; no test of what users see, so it may look inside."""
    metadata = store._metadata  # pyright: ignore[reportPrivateUsage]
    return [metadata._read_connection, metadata._write_connection]  # pyright: ignore[reportPrivateUsage]


async def fill(store: FileStore, number: int, topics: int) -> None:
    """List messages the short way."""

    def rows(connection: sqlite3.Connection) -> None:
        now = datetime.now(UTC).timestamp()
        connection.executemany(
            "INSERT INTO messages (id, topic, key, bytes, frames, headers, container, pipeline, digest, "
            "created, sealed, owner) VALUES (?, ?, ?, 1, 1, '{}', '', '{}', '', ?, ?, 'o')",
            ((uuid.uuid4().hex, f"t.{n % topics}", str(n), now, now) for n in range(number)),
        )
        connection.execute(
            "INSERT INTO bodies SELECT seq, x'00' FROM messages WHERE seq NOT IN (SELECT seq FROM bodies)"
        )

    await store._metadata.write(rows)  # pyright: ignore[reportPrivateUsage]


async def test_nothing_costs_more_because_more_is_stored(tmp_path: Path) -> None:
    """A publish into a full topic, a delivery and its ack, and the figures, with 1,000 and 30,000 of them."""
    store = FileStore(tmp_path)
    async with Broker(store, SETTINGS) as broker:
        await broker.put_policy("p", PolicyConfig("t.*", max_messages=10**6, max_age=1e6))
        await broker.put_policy("q", PolicyConfig("q", retention="interest", max_bytes=10**9))
        await broker.ensure_consumer("c", ConsumerConfig("q"))
        steps = Steps(store)

        async def use() -> None:
            upload = await broker.begin("q", owner="o", quota=10**12)
            assert isinstance(upload, Upload)
            async with upload:
                await upload.write(body(10))
                await upload.seal()
            (delivery,) = await broker.pull("c")
            await broker.ack("c", delivery.token)
            await publish(broker, "t.1", 10)
            await broker.stats()
            await broker.topics()
            await broker.sweep()

        await fill(store, 1000, 20)
        few = min([await steps.of(use) for _ in range(3)])
        await fill(store, 29_000, 20)
        many = min([await steps.of(use) for _ in range(3)])
        assert many < 1.5 * few


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FileStore]:
    """A store in use, without a broker."""
    store = FileStore(tmp_path)
    await store.start()
    yield store
    await store.close()


def info(number: int) -> MessageInfo:
    """A message to be listed."""
    now = datetime.now(UTC)
    return MessageInfo(
        id=uuid.uuid4().hex,
        seq=None,
        topic="t",
        key=str(number),
        state="sealed",
        bytes=3,
        frames=1,
        headers={},
        container="",
        pipeline={},
        items=0,
        original_bytes=0,
        wire_bytes=3,
        digest="",
        created=now,
        sealed=now,
    )


async def test_messages_are_listed_in_the_order_of_the_calls(store: FileStore) -> None:
    """However many commits that takes; and the frames of each are its own."""
    infos = [info(number) for number in range(1000)]
    receipts = await asyncio.gather(
        *(store.seal(each, [], b"%03d" % number) for number, each in enumerate(infos))
    )
    assert [receipt.seq for receipt in receipts] == list(range(1, 1001))
    assert store.open_frames(infos[7].id, 3) == b"007"
    wanted = [infos[1].id, "0" * 32, infos[2].id]
    assert await store.bodies(wanted) == {infos[1].id: b"001", infos[2].id: b"002"}
