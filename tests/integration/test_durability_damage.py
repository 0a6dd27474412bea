"""Stored frames that are not what was stored: never delivered, put aside, and in nobody's way."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tensorbus.bus.broker import Broker, BrokerSettings
from tensorbus.bus.broker.frame_source import FrameSource
from tensorbus.bus.broker.uploads import Upload
from tensorbus.bus.broker.verification import WINDOW, Verification
from tensorbus.bus.consumers import ConsumerConfig
from tensorbus.bus.messages import Receipt
from tensorbus.bus.server import ServerSettings
from tensorbus.bus.stores.file import FileStore
from tensorbus.bus.testing import running_broker
from tensorbus.errors import NotFound, StoreDamaged
from tensorbus.streaming.raw import RawEncoder

MIB = 1 << 20
ON_DISK = BrokerSettings(inline_bytes=0)
FRAMES = {"Content-Type": "application/vnd.tensorbus.frames"}


def body(size: int, seed: int = 0) -> bytes:
    """The frames of a message."""
    encoder = RawEncoder({}, "application/octet-stream", size)
    opening = encoder.open()
    content = random.Random(seed).randbytes(size)
    slices = b"".join(head + bytes(payload) for head, payload in encoder.slices(content))
    return opening + slices + encoder.close()


async def publish(broker: Broker, frames: bytes) -> Receipt:
    """Publish frames."""
    upload = await broker.begin("a.b", size=len(frames))
    assert isinstance(upload, Upload)
    async with upload:
        await upload.write(frames)
        return await upload.seal()


async def read(broker: Broker, message_id: str, start: int = 0, end: int | None = None) -> bytes:
    """A body, or a range of it."""
    async with await broker.open_reader(message_id, start, end) as reader:
        return b"".join([bytes(chunk) async for chunk in reader])


def flip(path: Path, offset: int) -> None:
    """One bit."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 16]))


def file_of(data: Path, message_id: str) -> Path:
    """Where a message's frames are, or were put aside."""
    return next(data.rglob(f"{message_id}.frames"))


def to_the_end(check: Verification, size: int) -> None:
    """Verify all that is left."""
    while check.verified < size:
        check.ahead(check.verified)


# --- verification ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 1000, 70_000, 3 * MIB])
def test_every_byte_is_covered(tmp_path: Path, size: int) -> None:
    """Whatever bit changes, nothing from its frame on is let go, and all that is before it is as it was."""
    whole = body(size)
    path = tmp_path / "frames"
    chance = random.Random(size)
    for offset in {0, 5, 19, 20, len(whole) - 1, *(chance.randrange(len(whole)) for _ in range(60))}:
        damaged = bytearray(whole)
        damaged[offset] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        with path.open("rb") as file:
            for source in (FrameSource(os.dup(file.fileno())), FrameSource(bytes(damaged))):
                check = Verification(source, len(whole), None)
                with pytest.raises(StoreDamaged):
                    to_the_end(check, len(whole))
                assert check.verified <= offset
                source.close()


def test_ranges_verify_the_frames_they_touch() -> None:
    """A range in the midst of a frame takes that frame whole; damage elsewhere is none of its business."""
    whole = body(3 * MIB)
    for start, offset, harmed in (
        (3 * MIB // 2, MIB // 2, False),
        (MIB // 2, len(whole) - 3, False),
        (MIB // 2, MIB // 2 + 5, True),
        (MIB // 2, 300, True),
    ):
        damaged = bytearray(whole)
        damaged[offset] ^= 1
        check = Verification(FrameSource(bytes(damaged)), len(whole), None, start)
        if harmed:
            with pytest.raises(StoreDamaged):
                check.ahead(start)
        else:
            assert start < check.ahead(start) <= start + 2 * WINDOW


def test_whole_frames_that_are_not_the_messages_own() -> None:
    """Frames of another message are found out by the digest before its last frame is let go."""
    other = body(2 * MIB)
    to_the_end(Verification(FrameSource(other), len(other), None), len(other))
    check = Verification(FrameSource(other), len(other), "0" * 64)
    with pytest.raises(StoreDamaged, match="not those of this message"):
        to_the_end(check, len(other))
    assert check.verified < len(other)


# --- the broker --------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [ON_DISK, BrokerSettings()], ids=["file", "row"])
async def test_a_damaged_message_is_put_aside_for_good(tmp_path: Path, settings: BrokerSettings) -> None:
    """The reader gets an error; from then on the message is listed as damaged and nowhere else, also after
    a restart; its file is in quarantine; it can be deleted.
    """
    frames = body(5000)
    async with Broker(FileStore(tmp_path), settings) as broker:
        bad, good = await publish(broker, frames), await publish(broker, body(5000, seed=1))
        harm(tmp_path, bad)
        with pytest.raises(StoreDamaged, match=bad.id):
            await read(broker, bad.id)
        await until_damaged(broker, bad.id)
    if settings is ON_DISK:
        assert file_of(tmp_path, bad.id).parent == tmp_path / "quarantine"
    async with Broker(FileStore(tmp_path), settings) as broker:
        [damage] = (await broker.damaged()).damaged
        assert (damage.id, damage.seq, damage.topic, damage.bytes) == (bad.id, 1, "a.b", len(frames))
        assert "CRC-32C" in damage.reason
        for ask in (broker.message, broker.open_reader, broker.manifest):
            with pytest.raises(StoreDamaged, match=bad.id):
                await ask(bad.id)
        assert [m.id for m in (await broker.messages()).messages] == [good.id]
        assert (await broker.stats()).damaged == 1
        await broker.delete(bad.id)
        assert (await broker.damaged()).damaged == ()
        with pytest.raises(NotFound):
            await broker.message(bad.id)
        assert not list(tmp_path.rglob(f"{bad.id}*"))


def harm(data: Path, receipt: Receipt) -> None:
    """Flip a bit in the midst of a message, in its file or its row."""
    path = data / "frames" / f"{receipt.id}.frames"
    if path.exists():
        flip(path, receipt.bytes // 2)
        return
    with sqlite3.connect(data / "meta.db") as rows:
        (frames,) = rows.execute("SELECT data FROM bodies WHERE seq = ?", (receipt.seq,)).fetchone()
        damaged = bytearray(frames)
        damaged[len(frames) // 2] ^= 1
        rows.execute("UPDATE bodies SET data = ? WHERE seq = ?", (bytes(damaged), receipt.seq))
    rows.close()


async def until_damaged(broker: Broker, message_id: str) -> None:
    """Damage is found in the thread that reads, and dealt with on the event loop soon after."""
    async with asyncio.timeout(10):
        while message_id not in [damage.id for damage in (await broker.damaged()).damaged]:
            await asyncio.sleep(0)


async def test_consumers_pass_by_what_is_damaged(tmp_path: Path) -> None:
    """A pending delivery of it is gone, the backlog does not count it, pulls hand out what is behind it."""
    async with Broker(FileStore(tmp_path), ON_DISK) as broker:
        for name in ("had-it", "comes-late"):
            await broker.ensure_consumer(name, ConsumerConfig("a.b"))
        bad, good = await publish(broker, body(5000)), await publish(broker, body(5000))
        [delivery] = await broker.pull("had-it", 1)
        assert delivery.message.id == bad.id
        harm(tmp_path, bad)
        with pytest.raises(StoreDamaged):
            await read(broker, bad.id)
        await until_damaged(broker, bad.id)
        assert (await broker.consumer("had-it")).ack_pending == 0
        assert (await broker.consumer("comes-late")).backlog == 1
        for name in ("had-it", "comes-late"):
            [delivery] = await broker.pull(name, 5)
            assert delivery.message.id == good.id
            await broker.ack(name, delivery.token)


@pytest.mark.parametrize("restart", [False, True])
async def test_a_restored_message_reaches_whoever_has_not_had_it(tmp_path: Path, restart: bool) -> None:
    """After its file was brought back and a scrub has found it whole, it is delivered to those who passed it
    by or had it pending, and not to those who had settled it.
    """
    async with Broker(FileStore(tmp_path), ON_DISK) as broker:
        for name in ("settled", "pending", "passed-by"):
            await broker.ensure_consumer(name, ConsumerConfig("a.b"))
        bad = await publish(broker, body(5000))
        await publish(broker, body(5000))
        [delivery] = await broker.pull("settled", 1)
        await broker.ack("settled", delivery.token)
        await broker.pull("pending", 1)
        path = file_of(tmp_path, bad.id)
        backup = path.read_bytes()
        harm(tmp_path, bad)
        broker.scrub()
        assert [name for name, _ in (await broker.scrub_end()).damaged] == [bad.id]
        for name in ("settled", "pending", "passed-by"):
            [delivery] = await broker.pull(name, 5)
            await broker.ack(name, delivery.token)
    path.write_bytes(backup)
    if not restart:
        async with Broker(FileStore(tmp_path), ON_DISK) as broker:
            await delivered_to_two(broker, bad)
        return
    async with Broker(FileStore(tmp_path), ON_DISK) as broker:
        broker.scrub()
        await broker.scrub_end()
    async with Broker(FileStore(tmp_path), ON_DISK) as broker:
        await delivered_to_two(broker, bad)


async def delivered_to_two(broker: Broker, bad: Receipt) -> None:
    """The restored message goes to the two consumers that have not settled it."""
    broker.scrub()
    report = await broker.scrub_end()
    assert report.clean
    assert (await broker.damaged()).damaged == ()
    assert await read(broker, bad.id) == body(5000)
    for name in ("pending", "passed-by"):
        [delivery] = await broker.pull(name, 5)
        assert delivery.message.id == bad.id
    assert await broker.pull("settled", 5) == []


async def test_a_missing_file_is_damage_of_one_message(tmp_path: Path) -> None:
    """It is found when somebody asks, without a restart; everybody else goes on."""
    async with Broker(FileStore(tmp_path), ON_DISK) as broker:
        bad, good = await publish(broker, body(5000)), await publish(broker, body(5000))
        file_of(tmp_path, bad.id).unlink()
        with pytest.raises(StoreDamaged, match="missing"):
            await broker.open_reader(bad.id)
        assert [damage.id for damage in (await broker.damaged()).damaged] == [bad.id]
        assert len(await read(broker, good.id)) == good.bytes


async def test_deleting_a_message_that_is_being_read_is_no_damage(tmp_path: Path) -> None:
    """A reader keeps what it has opened."""
    async with Broker(FileStore(tmp_path), ON_DISK) as broker:
        sent = await publish(broker, body(3 * MIB))
        async with await broker.open_reader(sent.id) as reader:
            await broker.delete(sent.id)
            assert b"".join([bytes(chunk) async for chunk in reader]) == body(3 * MIB)
        assert (await broker.stats()).damaged == 0


# --- over HTTP ---------------------------------------------------------------------------------------


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a broker of its own."""
    async with (
        running_broker(tmp_path, ON_DISK, ServerSettings()) as url,
        aiohttp.ClientSession(url) as session,
    ):
        yield session


async def post(http: aiohttp.ClientSession, frames: bytes) -> str:
    """Publish over HTTP; the id."""
    async with http.post("/v1/topics/a.b/messages", data=frames, headers=FRAMES) as answer:
        assert answer.status == 201, await answer.text()
        return (await answer.json())["id"]


@pytest.mark.parametrize("place", ["first frame", "midst", "last frame"])
async def test_a_download_is_cut_where_the_damage_begins(
    http: aiohttp.ClientSession, tmp_path: Path, place: str
) -> None:
    """The answer never completes, and what it holds is what was published; then it is listed as damaged."""
    frames = body(6 * MIB)
    name = await post(http, frames)
    offset = {"first frame": 30, "midst": 3 * MIB, "last frame": len(frames) - 2}[place]
    flip(file_of(tmp_path, name), offset)
    got = bytearray()

    async def download() -> None:
        async with http.get(f"/v1/messages/{name}/frames") as answer:
            assert answer.status == 200
            async for chunk in answer.content.iter_any():
                got.extend(chunk)

    with pytest.raises(aiohttp.ClientError):
        await download()
    assert len(got) <= offset
    assert frames.startswith(got)
    async with asyncio.timeout(10):
        while not (listed := await damaged(http)):
            pass
    assert [entry["id"] for entry in listed] == [name]
    async with http.get(f"/v1/messages/{name}/frames") as answer:
        assert answer.status == 500
        assert (await answer.json())["type"].endswith("store-damaged")
    async with http.delete(f"/v1/messages/{name}") as answer:
        assert answer.status == 204
    assert await damaged(http) == []


async def damaged(http: aiohttp.ClientSession) -> list[dict[str, object]]:
    """The listing of damaged messages."""
    async with http.get("/v1/damaged") as answer:
        assert answer.status == 200
        return (await answer.json())["damaged"]


async def test_a_range_is_verified_like_the_whole(http: aiohttp.ClientSession, tmp_path: Path) -> None:
    """A range before the damage is served, one that touches it is not."""
    frames = body(6 * MIB)
    name = await post(http, frames)
    flip(file_of(tmp_path, name), 4 * MIB)
    address = f"/v1/messages/{name}/frames"
    async with http.get(address, headers={"Range": f"bytes=12345-{2 * MIB}"}) as answer:
        assert answer.status == 206
        assert await answer.read() == frames[12345 : 2 * MIB + 1]
    with pytest.raises(aiohttp.ClientError):
        async with http.get(address, headers={"Range": f"bytes={4 * MIB + 10}-"}) as answer:
            await answer.read()


async def test_damage_of_one_message_holds_up_nobody(http: aiohttp.ClientSession, tmp_path: Path) -> None:
    """Downloads of others go on beside one that is cut."""
    whole = [body(4 * MIB, seed) for seed in range(3)]
    names = [await post(http, frames) for frames in whole]
    flip(file_of(tmp_path, names[1]), 2 * MIB)

    async def fetch(name: str) -> bytes | None:
        try:
            async with http.get(f"/v1/messages/{name}/frames") as answer:
                return await answer.read() if answer.status == 200 else None
        except aiohttp.ClientError:
            return None

    got = await asyncio.gather(*(fetch(name) for name in names * 4))
    for name, frames in zip(names * 4, got, strict=True):
        assert frames == (None if name == names[1] else whole[names.index(name)])
