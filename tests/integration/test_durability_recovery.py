"""What a start puts in order, and a directory that was copied while its broker ran."""

from __future__ import annotations

import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from tensorbus.bus.broker import Broker, BrokerSettings
from tensorbus.bus.broker.uploads import Upload
from tensorbus.bus.consumers import ConsumerConfig
from tensorbus.bus.messages import Receipt
from tensorbus.bus.stores.file import FileStore
from tensorbus.errors import StoreDamaged
from tensorbus.streaming.raw import RawEncoder

ON_DISK = BrokerSettings(inline_bytes=0)


def body(size: int) -> bytes:
    """The frames of a message."""
    encoder = RawEncoder({}, "application/octet-stream", size)
    opening = encoder.open()
    content = random.Random(size).randbytes(size)
    slices = b"".join(head + bytes(payload) for head, payload in encoder.slices(content))
    return opening + slices + encoder.close()


async def publish(broker: Broker, frames: bytes, key: str | None = None) -> Receipt:
    """Publish frames."""
    upload = await broker.begin("a.b", key)
    assert isinstance(upload, Upload)
    async with upload:
        await upload.write(frames)
        return await upload.seal()


async def read(broker: Broker, message_id: str) -> bytes:
    """A whole body."""
    async with await broker.open_reader(message_id) as reader:
        return b"".join([bytes(chunk) async for chunk in reader])


async def test_files_without_rows_are_removed_wherever_they_are(tmp_path: Path) -> None:
    """In the folder of frames and in the quarantine; what an upload that goes on has is kept."""
    async with Broker(FileStore(tmp_path), ON_DISK) as broker:
        kept = await publish(broker, body(5000))
        upload = await broker.create_upload("a.b", length=len(body(5000)))
        assert isinstance(upload, Upload)
        async with upload.turn(lambda: None):
            await upload.write(body(5000)[:3000])
            await upload.flush()
    (tmp_path / "quarantine").mkdir()
    for folder, name in (("frames", "0"), ("quarantine", "1")):
        (tmp_path / folder / f"{name * 32}.frames").write_bytes(b"left over")
    store = FileStore(tmp_path)
    async with Broker(store, ON_DISK) as broker:
        assert sorted(store.leftovers) == [f"frames/{'0' * 32}.frames", f"quarantine/{'1' * 32}.frames"]
        assert await read(broker, kept.id) == body(5000)
        assert broker.upload(upload.id) is not None
    left = {path.stem for path in tmp_path.rglob("*.frames")}
    assert left == {kept.id, upload.id}


async def test_an_upload_whose_key_is_stored_does_not_come_back(tmp_path: Path) -> None:
    """It was given up while that could not be written down; its row and its file go at the next start."""
    async with Broker(FileStore(tmp_path), ON_DISK) as broker:
        upload = await broker.create_upload("a.b", key="k", length=len(body(5000)))
        assert isinstance(upload, Upload)
        async with upload.turn(lambda: None):
            await upload.write(body(5000)[:3000])
            await upload.flush()
    with sqlite3.connect(tmp_path / "meta.db") as rows:
        rows.execute("INSERT INTO keys VALUES ('a.b', 'k', 'x', 1, 1, 1, '', 0, 1)")
    rows.close()
    async with Broker(FileStore(tmp_path), ON_DISK) as broker:
        assert broker.upload(upload.id) is None
    assert not list(tmp_path.rglob("*.frames"))


@pytest.mark.parametrize("moment", ["before the file is moved", "before the row is gone"])
async def test_a_crash_while_damage_is_dealt_with(tmp_path: Path, moment: str) -> None:
    """Whichever half of it had happened, the message is damaged, known, and can be restored."""
    async with Broker(FileStore(tmp_path), ON_DISK) as broker:
        await broker.ensure_consumer("c", ConsumerConfig("a.b"))
        sent = await publish(broker, body(5000))
    with sqlite3.connect(tmp_path / "meta.db") as rows:
        rows.execute("INSERT INTO damaged VALUES (?, 'it was found', 0)", (sent.id,))
    rows.close()
    if moment == "before the row is gone":
        # As after a restoration that moved the file back and no more, or before one that had to.
        (tmp_path / "quarantine").mkdir()
        file = tmp_path / "frames" / f"{sent.id}.frames"
        file.rename(tmp_path / "quarantine" / file.name)
    async with Broker(FileStore(tmp_path), ON_DISK) as broker:
        with pytest.raises(StoreDamaged, match="it was found"):
            await broker.message(sent.id)
        assert await broker.pull("c") == []
        broker.scrub()
        assert (await broker.scrub_end()).restored == (sent.id,)
        assert [delivery.message.id for delivery in await broker.pull("c")] == [sent.id]
        assert await read(broker, sent.id) == body(5000)
    assert [path.parent.name for path in tmp_path.rglob("*.frames")] == ["frames"]


async def test_a_copy_of_a_running_broker_is_whole(tmp_path: Path) -> None:
    """Rows first, frames afterwards: everything that the rows of the copy tell of is in it."""
    async with Broker(FileStore(tmp_path / "data")) as broker:
        sent = [await publish(broker, body(size)) for size in (500, 200_000)]
        copy = tmp_path / "copy"
        copy.mkdir()
        with (
            sqlite3.connect(tmp_path / "data" / "meta.db") as rows,
            sqlite3.connect(copy / "meta.db") as copied,
        ):
            rows.backup(copied)
        rows.close()
        copied.close()
        await publish(broker, body(300_000))
        shutil.copytree(tmp_path / "data" / "frames", copy / "frames")
    async with Broker(FileStore(copy)) as broker:
        broker.scrub()
        assert (await broker.scrub_end()).clean
        assert [m.id for m in (await broker.messages()).messages] == [receipt.id for receipt in sent]
