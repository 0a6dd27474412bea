"""What a data directory survives, and what it refuses."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tensorbus.bus.broker import Broker
from tensorbus.bus.broker.uploads import Upload
from tensorbus.bus.consumers import ConsumerConfig
from tensorbus.bus.messages import Receipt
from tensorbus.bus.stores.file import FileStore
from tensorbus.bus.stores.schema import VERSION
from tensorbus.errors import NotFound, StorageError, StoreDamaged, StoreInUse, StoreVersion
from tensorbus.streaming.raw import RawEncoder


def body(size: int = 1000) -> bytes:
    """The frames of a message."""
    encoder = RawEncoder({}, "application/octet-stream", size)
    opening = encoder.open()
    slices = b"".join(head + bytes(payload) for head, payload in encoder.slices(os.urandom(size)))
    return opening + slices + encoder.close()


async def publish(broker: Broker, frames: bytes) -> Receipt:
    """Publish frames."""
    upload = await broker.begin("a.b")
    assert isinstance(upload, Upload)
    async with upload:
        await upload.write(frames)
        return await upload.seal()


async def read(broker: Broker, message_id: str) -> bytes:
    """A whole body."""
    async with await broker.open_reader(message_id) as reader:
        return b"".join([bytes(chunk) async for chunk in reader])


async def test_a_directory_is_made_and_found_again(tmp_path: Path) -> None:
    """Messages, topics and figures are the same after a restart, and seqs go on."""
    data = tmp_path / "not" / "there" / "yet"
    frames = body()
    async with Broker(FileStore(data)) as broker:
        first = await publish(broker, frames)
        before = (await broker.message(first.id), await broker.topics())
    async with Broker(FileStore(data)) as broker:
        assert (await broker.message(first.id), await broker.topics()) == before
        assert await read(broker, first.id) == frames
        await broker.delete(first.id)
        assert (await publish(broker, body())).seq == 2


async def test_leftovers_of_uploads_are_removed_and_nothing_else(tmp_path: Path) -> None:
    """A frame file without a row was never acknowledged; a file that is none of ours is not touched."""
    async with Broker(FileStore(tmp_path)) as broker:
        kept = await publish(broker, body())
    orphan = tmp_path / "frames" / f"{'0' * 32}.frames"
    foreign = tmp_path / "frames" / "README.txt"
    orphan.write_bytes(b"half a message")
    foreign.write_text("mine")
    async with Broker(FileStore(tmp_path)) as broker:
        assert [m.id for m in (await broker.messages()).messages] == [kept.id]
    assert not orphan.exists()
    assert foreign.read_text() == "mine"


async def test_two_brokers_never_share_a_directory(tmp_path: Path) -> None:
    """The second is told so, and by whom; the first is not disturbed; afterwards it is free."""
    async with Broker(FileStore(tmp_path)) as first:
        with pytest.raises(StoreInUse, match=f"process {os.getpid()}"):
            await Broker(FileStore(tmp_path)).start()
        assert (await publish(first, body())).seq == 1
    async with Broker(FileStore(tmp_path)) as second:
        assert (await publish(second, body())).seq == 2


HOLD = """
import asyncio, sys
from tensorbus.bus.stores.file import FileStore
async def main():
    await FileStore(sys.argv[1]).start()
    print("holding", flush=True)
    sys.stdin.read()
asyncio.run(main())
"""


async def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    """A broker killed with SIGKILL leaves nothing that keeps the next one out."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holding\n"
        with pytest.raises(StoreInUse, match=f"process {holder.pid}"):
            await Broker(FileStore(tmp_path)).start()
        holder.kill()
        holder.wait()
        async with Broker(FileStore(tmp_path)) as broker:
            assert (await publish(broker, body())).seq == 1


@pytest.mark.parametrize(("version", "words"), [(VERSION + 1, "newer release"), (1, "older release")])
async def test_a_directory_of_another_release_is_left_alone(tmp_path: Path, version: int, words: str) -> None:
    """It is refused before anything is written to it."""
    async with Broker(FileStore(tmp_path)) as broker:
        await publish(broker, body())
    kept = len(list((tmp_path / "frames").iterdir()))
    meta = tmp_path / "meta.db"
    with sqlite3.connect(meta) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    before = meta.read_bytes()
    with pytest.raises(StoreVersion, match=words):
        await Broker(FileStore(tmp_path)).start()
    assert meta.read_bytes() == before
    assert len(list((tmp_path / "frames").iterdir())) == kept


async def test_a_directory_that_cannot_be_used_is_refused_in_words(tmp_path: Path) -> None:
    """A file in its place, or a metadata file that is no database."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="file"):
        await Broker(FileStore(tmp_path / "file")).start()
    (tmp_path / "meta.db").write_bytes(b"this is not a database, it is a text" * 100)
    with pytest.raises(StorageError, match="not a database"):
        await Broker(FileStore(tmp_path)).start()
    (tmp_path / "meta.db").unlink()
    async with Broker(FileStore(tmp_path)) as broker:
        assert (await broker.stats()).messages == 0


@pytest.mark.parametrize("damage", ["shorter", "longer", "missing"])
async def test_a_damaged_message_is_reported_and_not_delivered(tmp_path: Path, damage: str) -> None:
    """A file of the wrong size is found at the start; the others are delivered, and it can be deleted."""
    async with Broker(FileStore(tmp_path)) as broker:
        await broker.ensure_consumer("c", ConsumerConfig(">"))
        await broker.ensure_consumer("d", ConsumerConfig(">", ack_wait=0.01))
        bad, good = await publish(broker, body()), await publish(broker, body())
        await broker.pull("d", 1)
    path = tmp_path / "frames" / f"{bad.id}.frames"
    if damage == "missing":
        path.unlink()
    else:
        os.truncate(path, bad.bytes - 1 if damage == "shorter" else bad.bytes + 1)
    async with Broker(FileStore(tmp_path)) as broker:
        for ask in (broker.message, broker.open_reader, broker.manifest):
            with pytest.raises(StoreDamaged, match=bad.id):
                await ask(bad.id)
        assert [m.id for m in (await broker.messages()).messages] == [good.id]
        for name in ("c", "d"):
            assert [d.message.id for d in await broker.pull(name, 9)] == [good.id]
        assert (await broker.stats()).damaged == 1
        await broker.delete(bad.id)
        assert (await broker.stats()).damaged == 0
        with pytest.raises(NotFound):
            await broker.message(bad.id)


async def test_damage_while_the_broker_runs_is_found_by_size(tmp_path: Path) -> None:
    """A reader is refused before it gets a byte."""
    async with Broker(FileStore(tmp_path)) as broker:
        sent = await publish(broker, body())
        os.truncate(tmp_path / "frames" / f"{sent.id}.frames", 10)
        with pytest.raises(StoreDamaged, match="10 bytes instead of"):
            await broker.open_reader(sent.id)
