"""What a broker refuses, what a key stands for, and what an acknowledgement says, on a real disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from threading import Event

import pytest

from storing import frames_left
from storing.framed import BODY, begin, frames_of, publish
from tensorbus.bus.broker import Broker, BrokerSettings
from tensorbus.bus.broker.uploads import Upload
from tensorbus.bus.messages import Receipt
from tensorbus.bus.stores.base import FrameFile, Part
from tensorbus.bus.stores.file import FileStore
from tensorbus.errors import (
    BrokerBusy,
    ChecksumMismatch,
    LimitExceeded,
    MessageAborted,
    TensorbusError,
    TruncatedFrames,
)


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    """A running broker on an empty directory, with small batches so that there are many."""
    settings = BrokerSettings(
        batch_bytes=4096, sync_bytes=8192, chunk_bytes=1000, max_message_bytes=1 << 20, max_open_messages=8
    )
    async with Broker(FileStore(tmp_path / "data"), settings) as running:
        yield running


# --- bad bodies --------------------------------------------------------------------------------------

FLIPPED = bytearray(b"".join(BODY))
FLIPPED[2500] ^= 0x10


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", TruncatedFrames),
        (b"".join(BODY)[:-1], TruncatedFrames),
        (b"".join(BODY[:-1]), TruncatedFrames),
        (bytes(FLIPPED), ChecksumMismatch),
        (b"".join([*BODY[:2], BODY[3], BODY[2], *BODY[4:]]), TensorbusError),
        (b"".join([*BODY[:3], *BODY[2:]]), TensorbusError),
        (b"".join(BODY) + BODY[0], TensorbusError),
        (b"PK\x03\x04" * 100, TensorbusError),
    ],
    ids=["empty", "cut", "unclosed", "flipped", "reordered", "repeated", "trailing", "zip"],
)
async def test_a_bad_body_is_refused_and_leaves_nothing(
    broker: Broker, tmp_path: Path, body: bytes, expected: type[TensorbusError]
) -> None:
    """Nothing that was not verified is ever listed or kept, and what was there before stays."""
    before = await publish(broker)
    with pytest.raises(expected):
        await publish(broker, frames=[body])
    assert [m.id for m in (await broker.messages()).messages] == [before.id]
    await frames_left.becomes(tmp_path / "data", {before.id})


async def test_limits_hold_before_and_during_an_upload(broker: Broker) -> None:
    """A body that is too large is refused when it is announced, and when it is not announced, on its way."""
    with pytest.raises(LimitExceeded, match="1048577"):
        await broker.begin("a", size=(1 << 20) + 1)
    large = frames_of({"w": bytes(2 << 20)}, step=100_000)
    with pytest.raises(LimitExceeded, match="1048576"):
        await publish(broker, frames=large)
    uploads = [await begin(broker, "a") for _ in range(8)]
    with pytest.raises(BrokerBusy, match="8 messages"):
        await broker.begin("a")
    for upload in uploads:
        await upload.abort("the test ends")


# --- idempotency keys --------------------------------------------------------------------------------


async def test_a_key_is_stored_once_and_outlives_restart_and_deletion(tmp_path: Path) -> None:
    """A retry gets the first receipt, marked duplicate, as long as the data directory lives."""
    async with Broker(FileStore(tmp_path)) as broker:
        first = await publish(broker, "a.b", key="round-1/site-a")
        again = await broker.begin("a.b", "round-1/site-a")
        assert isinstance(again, Receipt)
        assert again.duplicate
        assert (again.id, again.seq, again.digest) == (first.id, first.seq, first.digest)
        assert (await publish(broker, "a.c", key="round-1/site-a")).id != first.id
    async with Broker(FileStore(tmp_path)) as broker:
        await broker.delete(first.id)
    async with Broker(FileStore(tmp_path)) as broker:
        late = await broker.begin("a.b", "round-1/site-a")
        assert isinstance(late, Receipt)
        assert (late.id, late.duplicate) == (first.id, True)


async def test_a_second_upload_of_an_open_key_takes_its_place(broker: Broker, tmp_path: Path) -> None:
    """A client that reconnects is not blocked by its own dead connection."""
    async with await begin(broker, "a", "k") as first:
        await first.write(memoryview(BODY[0]))
        second = await publish(broker, "a", "k")
        with pytest.raises(MessageAborted, match="took its place"):
            await first.write(BODY[1])
    assert [m.id for m in (await broker.messages()).messages] == [second.id]
    await frames_left.becomes(tmp_path / "data", {second.id})


async def test_many_uploads_of_one_key_at_once_store_it_once(broker: Broker) -> None:
    """However retries overlap, one message is stored."""
    await asyncio.gather(*(publish_or_give_way(broker) for _ in range(20)))
    assert len((await broker.messages()).messages) == 1


async def publish_or_give_way(broker: Broker) -> None:
    """Publish under one key; another upload of it may win."""
    try:
        upload = await broker.begin("a", "k")
        if isinstance(upload, Upload):
            async with upload:
                for frame in BODY:
                    await upload.write(frame)
                await upload.seal()
    except MessageAborted:
        pass


class LookAgainStore(FileStore):
    """The real store; once told to hold, an answer about a key is on its way until ``go``."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.hold = False
        self.reached = asyncio.Event()
        self.go = asyncio.Event()

    async def receipt(self, topic: str, key: str) -> Receipt | None:
        """The answer of now, given later."""
        found = await super().receipt(topic, key)
        if self.hold:
            self.reached.set()
            await self.go.wait()
        return found


async def test_a_key_that_is_stored_while_another_begins_is_stored_once(tmp_path: Path) -> None:
    """The transaction has the last word: the second upload gets the first receipt and leaves nothing."""
    store = LookAgainStore(tmp_path / "data")
    async with Broker(store) as broker:
        async with await begin(broker, "a", "k") as first:
            for frame in BODY:
                await first.write(frame)
            store.hold = True
            late = asyncio.create_task(publish(broker, "a", "k"))
            await store.reached.wait()
            receipt = await first.seal()
        store.go.set()
        second = await late
        assert (second.id, second.duplicate) == (receipt.id, True)
        await frames_left.becomes(tmp_path / "data", {receipt.id})
        assert len((await broker.messages()).messages) == 1


# --- order of writing --------------------------------------------------------------------------------


class WatchedFile(FrameFile):
    """Passes everything on, and notes the order of calls; appends wait for a gate."""

    def __init__(self, file: FrameFile, calls: list[str], gate: Event) -> None:
        self._file = file
        self._calls = calls
        self._gate = gate

    def append(self, parts: Sequence[Part]) -> None:
        """Note it."""
        assert self._gate.wait(30)
        self._file.append(parts)
        self._calls.append("append")

    def sync(self) -> None:
        """Note it."""
        self._file.sync()
        self._calls.append("sync")

    def close(self) -> None:
        """Pass it on."""
        self._file.close()

    def discard(self) -> None:
        """Pass it on."""
        self._file.discard()


class WatchedStore(FileStore):
    """The real store; its files are watched."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.calls: list[str] = []
        self.gate = Event()

    def create(self, message_id: str) -> FrameFile:
        """A watched file."""
        return WatchedFile(super().create(message_id), self.calls, self.gate)

    def _sync_new_names(self) -> None:
        super()._sync_new_names()
        self.calls.append("commit")


async def test_acknowledged_means_written_synced_and_committed_in_this_order(tmp_path: Path) -> None:
    """Law 2: the file is synced after its last byte and before the row that tells of it is committed."""
    store = WatchedStore(tmp_path)
    store.gate.set()
    async with Broker(store) as broker:
        await publish(broker)
        assert store.calls[-3:] == ["append", "sync", "commit"]


async def test_a_long_upload_is_synced_in_steps(tmp_path: Path) -> None:
    """The acknowledgement waits for the last step, not for the whole file."""
    store = WatchedStore(tmp_path)
    store.gate.set()
    async with Broker(store, BrokerSettings(batch_bytes=4096, sync_bytes=16_384)) as broker:
        await publish(broker, frames=frames_of({"w": bytes(200_000)}, step=4000))
    assert store.calls.count("sync") >= 200_000 // (16_384 + 8192)
    assert "sync" in store.calls[: len(store.calls) // 2]


async def test_write_waits_while_the_disk_is_behind(tmp_path: Path) -> None:
    """Backpressure: a fast publisher cannot fill the broker's memory."""
    store = WatchedStore(tmp_path)
    frames = frames_of({"w": bytes(100_000)}, step=1000)
    async with Broker(store, BrokerSettings(batch_bytes=8192)) as broker:
        publishing = asyncio.create_task(publish(broker, frames=frames))
        while not (opened := (await broker.messages(state="open")).messages):
            await asyncio.sleep(0)
        await asyncio.wait([publishing], timeout=0.1)
        received = (await broker.stats()).received_bytes_total
        assert 8192 - 2000 <= received <= 2 * 8192 + 2000
        assert opened[0].bytes == 0
        store.gate.set()
        assert (await publishing).bytes == sum(map(len, frames))


async def test_many_uploads_share_one_bound(tmp_path: Path) -> None:
    """Law 1: what gathers while the disk is behind does not grow with the number of publishers."""
    store = WatchedStore(tmp_path)
    frames = frames_of({"w": bytes(100_000)}, step=1000)
    async with Broker(store, BrokerSettings(gather_bytes=50_000)) as broker:
        publishing = [asyncio.create_task(publish(broker, frames=frames)) for _ in range(20)]
        await asyncio.wait(publishing, timeout=0.1)
        received = (await broker.stats()).received_bytes_total
        assert 40_000 <= received <= 50_000 + 20 * 1200
        store.gate.set()
        receipts = await asyncio.gather(*publishing)
        assert len({receipt.id for receipt in receipts}) == 20
