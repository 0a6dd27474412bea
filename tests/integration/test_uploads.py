"""Resumable uploads at the broker: what outlives a connection, a restart and a crash, and what does not."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storing import frames_left
from tensorbus.bus.broker import Broker, BrokerSettings
from tensorbus.bus.broker.uploads import Upload
from tensorbus.bus.consumers import ConsumerConfig
from tensorbus.bus.messages import Receipt
from tensorbus.bus.stores.file import FileStore
from tensorbus.errors import (
    BrokerBusy,
    ChecksumMismatch,
    ChunkMismatch,
    Conflict,
    FrameError,
    MessageAborted,
    NotFound,
    TruncatedFrames,
)
from tensorbus.streaming.raw import RawEncoder

SIZE = 300_000
FRAME = 50_000


class VirtualClock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def wall(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


def frames(size: int = SIZE, seed: int = 0) -> list[bytes]:
    """The frames of a message."""
    encoder = RawEncoder({"seed": seed}, "application/octet-stream", size)
    found = [encoder.open()]
    data = bytes(os.urandom(size)) if seed else bytes(range(256)) * (size // 256 + 1)
    for start in range(0, size, FRAME):
        for head, payload in encoder.slices(data[start : min(start + FRAME, size)]):
            found.append(head + bytes(payload))
    return [*found, encoder.close()]


FRAMES = frames()
BODY = b"".join(FRAMES)
SETTINGS = BrokerSettings(sweep_interval=0, upload_expiry=100.0)


def nothing() -> None:
    """Nobody is asked to give way."""


async def created(broker: Broker, key: str | None = None, length: int | None = len(BODY)) -> Upload:
    """A new upload."""
    upload = await broker.create_upload("a.b", key, length)
    assert isinstance(upload, Upload)
    return upload


async def written(upload: Upload, part: bytes) -> None:
    """Write, and wait until it counts."""
    await upload.write(part)
    await upload.flush()


async def add(upload: Upload, part: bytes) -> None:
    """Write in a turn of its own."""
    async with upload.turn(nothing):
        await written(upload, part)


async def end(upload: Upload, part: bytes) -> Receipt:
    """Write what is missing, and seal."""
    async with upload.turn(nothing):
        await upload.write(part)
        return await upload.seal()


async def stored(broker: Broker, message_id: str) -> bytes:
    """A body as it is read."""
    async with await broker.open_reader(message_id) as reader:
        return b"".join([bytes(chunk) async for chunk in reader])


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    """A broker on an empty directory."""
    async with Broker(FileStore(tmp_path), SETTINGS) as running:
        yield running


@pytest.mark.parametrize("step", [1000, 33_333, FRAME, len(BODY)])
async def test_a_body_in_turns_is_the_body(broker: Broker, step: int) -> None:
    """However the turns are cut, and whether or not the state between them was let go of."""
    upload = await created(broker)
    for start in range(0, len(BODY), step):
        assert upload.offset == start
        await add(upload, BODY[start : start + step])
        if start // step % 3 == 0:
            upload.cool()
    # Whoever brings the last byte and leaves has the message acknowledged all the same.
    assert (await broker.message(upload.id)).state == "sealed"
    assert await stored(broker, upload.id) == BODY


async def test_a_small_body_in_one_turn_takes_no_file(broker: Broker, tmp_path: Path) -> None:
    """It lies with its row; one that pauses goes to a file, and on from there."""
    small = b"".join(frames(2000))
    receipt = await end(await created(broker, length=len(small)), small)
    await frames_left.becomes(tmp_path, ())
    assert await stored(broker, receipt.id) == small
    paused = await created(broker, length=len(small))
    await add(paused, small[:700])
    await frames_left.becomes(tmp_path, {paused.id})
    receipt = await end(paused, small[700:])
    assert await stored(broker, receipt.id) == small


@pytest.mark.parametrize("cut", [0, 10, 1000, len(BODY) // 2, len(BODY) - 1])
async def test_an_upload_outlives_its_broker(tmp_path: Path, cut: int) -> None:
    """After a restart it goes on behind the last whole frame; the message is the same as in one go."""
    async with Broker(FileStore(tmp_path), SETTINGS) as broker:
        upload = await created(broker, "k")
        await add(upload, BODY[:cut])
        upload_id = upload.id
    async with Broker(FileStore(tmp_path), SETTINGS) as broker:
        upload = broker.upload(upload_id)
        assert upload is not None
        assert upload.offset is None
        await upload.touch()
        ends = [sum(map(len, FRAMES[:count])) for count in range(len(FRAMES) + 1)]
        assert upload.offset == max(one for one in ends if one <= cut)
        receipt = await end(upload, BODY[upload.offset :])
        assert (receipt.id, receipt.key) == (upload_id, "k")
        assert await stored(broker, upload_id) == BODY
        again = await broker.create_upload("a.b", "k", len(BODY))
        assert isinstance(again, Receipt)
        assert again.duplicate


@pytest.mark.parametrize("damage", ["torn", "flipped", "garbage", "missing"])
async def test_what_a_crash_has_spoiled_is_cut_off(tmp_path: Path, damage: str) -> None:
    """Each frame is verified before anybody goes on behind it, so what is published in the end is whole."""
    async with Broker(FileStore(tmp_path), SETTINGS) as broker:
        upload = await created(broker)
        await add(upload, BODY[: len(BODY) - 100])
    path = tmp_path / "frames" / f"{upload.id}.frames"
    start = len(FRAMES[0]) + len(FRAMES[1]) + len(FRAMES[2])
    if damage == "torn":
        os.truncate(path, start + 10)
    elif damage == "missing":
        path.unlink()
        start = 0
    else:
        spoiled = bytearray(path.read_bytes())
        spoiled[start + 30 : start + 40] = bytes(10) if damage == "flipped" else b"garbage!!!"
        path.write_bytes(spoiled)
    async with Broker(FileStore(tmp_path), SETTINGS) as broker:
        found = broker.upload(upload.id)
        assert found is not None
        await found.touch()
        assert found.offset == start
        await end(found, BODY[start:])
        assert await stored(broker, found.id) == BODY


async def test_a_file_without_a_row_and_a_row_without_a_file(tmp_path: Path) -> None:
    """The first is rubbish and removed, the second an upload of which nothing has come yet."""
    async with Broker(FileStore(tmp_path), SETTINGS) as broker:
        upload = await created(broker)
    (tmp_path / "frames" / f"{'0' * 32}.frames").write_bytes(BODY[:1000])
    async with Broker(FileStore(tmp_path), SETTINGS) as broker:
        await frames_left.becomes(tmp_path, ())
        found = broker.upload(upload.id)
        assert found is not None
        await found.touch()
        assert found.offset == 0
        await end(found, BODY)


KILLED = """
import asyncio, os, signal, sys
from tensorbus.bus.broker import Broker
from tensorbus.bus.stores.file import FileStore
async def main():
    broker = Broker(FileStore(sys.argv[1]))
    await broker.start()
    upload = await broker.create_upload("a.b", "k", int(sys.argv[2]))
    body = sys.stdin.buffer.read()
    async with upload.turn(lambda: None):
        await upload.write(body)
        await upload.flush()
        if sys.argv[3] == "sealed":
            await upload.seal()
        print(upload.id, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


@pytest.mark.parametrize("moment", ["written", "sealed"])
async def test_a_killed_broker_keeps_the_upload_or_the_message(tmp_path: Path, moment: str) -> None:
    """kill -9 with a writer at work: what it wrote is gone on with; what was acknowledged is a message."""
    part = BODY if moment == "sealed" else BODY[:200_000]
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(len(BODY)), moment], input=part, capture_output=True
    )
    upload_id = run.stdout.decode().strip()
    async with Broker(FileStore(tmp_path), SETTINGS) as broker:
        found = broker.upload(upload_id)
        if moment == "sealed":
            assert found is None
        else:
            assert found is not None
            await found.touch()
            assert found.offset is not None
            assert found.offset >= 200_000 - FRAME - 200
            await end(found, BODY[found.offset :])
        assert await stored(broker, upload_id) == BODY
        assert len((await broker.messages()).messages) == 1


async def test_a_newer_writer_takes_the_turn(broker: Broker) -> None:
    """The one before is asked to give way and waited for; what it had written counts."""
    upload = await created(broker)
    asked = asyncio.Event()
    writing = asyncio.Event()

    async def first() -> None:
        async with upload.turn(asked.set):
            await upload.write(BODY[:100_000])
            writing.set()
            await asked.wait()

    old = asyncio.create_task(first())
    await writing.wait()
    async with upload.turn(nothing):
        assert old.done() or asked.is_set()
        assert upload.offset == 100_000
        await upload.write(BODY[100_000:])
        await upload.seal()
    await old
    assert await stored(broker, upload.id) == BODY


async def test_of_many_that_want_the_turn_the_last_gets_it(broker: Broker) -> None:
    """Those between are told so."""
    upload = await created(broker)
    go_on = asyncio.Event()

    async def want(asked: asyncio.Event) -> int:
        async with upload.turn(asked.set):
            await asyncio.wait(
                [asyncio.create_task(asked.wait()), asyncio.create_task(go_on.wait())],
                return_when=asyncio.FIRST_COMPLETED,
            )
            return 1

    tasks = [asyncio.create_task(want(asyncio.Event())) for _ in range(10)]
    await asyncio.sleep(0)
    go_on.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert found[-1] == 1
    assert all(one == 1 or isinstance(one, Conflict) for one in found)


async def test_a_follower_goes_on_over_parks_and_resumes(broker: Broker) -> None:
    """It is handed over while it is open, and one reader reads it to its end, whoever writes."""
    await broker.ensure_consumer("c", ConsumerConfig(">"))
    upload = await created(broker)
    await add(upload, BODY[:120_000])
    [delivery] = await broker.pull("c", follow=True)
    assert delivery.message.id == upload.id
    reading = asyncio.create_task(stored(broker, upload.id))
    for start in range(120_000, len(BODY), 60_000):
        upload.cool()
        await add(upload, BODY[start : start + 60_000])
    assert await reading == BODY
    await broker.ack("c", delivery.token)


async def test_a_bad_frame_is_refused_and_the_rest_kept(broker: Broker) -> None:
    """A bit that flipped on the way costs the frame that it is in, not the upload."""
    upload = await created(broker)
    start = sum(map(len, FRAMES[:3]))
    spoiled = bytearray(BODY)
    spoiled[start + 2000] ^= 1
    async with upload.turn(nothing):
        await upload.write(bytes(BODY[: start + 100]))
        await upload.flush()
        with pytest.raises(ChecksumMismatch):
            await written(upload, bytes(spoiled[start + 100 :]))
    assert upload.offset == start
    await end(upload, BODY[start:])
    assert await stored(broker, upload.id) == BODY


async def test_a_chunk_counts_only_when_its_checksum_agrees(broker: Broker) -> None:
    """Before, it is neither visible nor counted; if it does not agree, exactly this chunk is dropped."""
    upload = await created(broker)
    await add(upload, BODY[:70_000])
    visible = upload.message.visible
    for part, good in ((BODY[70_000:270_000], False), (BODY[70_000:270_000], True)):
        async with upload.turn(nothing):
            upload.hold(hashlib.sha256())
            await upload.write(part[:150_000])
            await upload.flush()
            assert (upload.offset, upload.message.visible) == (70_000, visible)
            await upload.write(part[150_000:])
            if good:
                await upload.verify(hashlib.sha256(part).digest())
                assert upload.offset == 270_000
                assert upload.message.visible > visible
            else:
                with pytest.raises(ChunkMismatch):
                    await upload.verify(b"other")
                assert upload.offset == 70_000
    async with upload.turn(nothing):
        upload.hold(hashlib.md5())
        await upload.write(BODY[270_000:280_000])
    assert upload.offset == 270_000  # nobody came to say that it was whole
    await end(upload, BODY[270_000:])
    assert await stored(broker, upload.id) == BODY


async def test_a_body_that_ends_without_its_last_frame_is_dropped(broker: Broker, tmp_path: Path) -> None:
    """It can never become a message: nothing of it is kept."""
    upload = await created(broker, length=200_000)
    with pytest.raises(TruncatedFrames):
        await end(upload, BODY[:200_000])
    assert broker.upload(upload.id) is None
    await frames_left.becomes(tmp_path, ())


async def test_an_upload_that_nobody_goes_on_with_expires(tmp_path: Path) -> None:
    """After its time without a writer it is gone with its file, also over a restart; a turn puts it off."""
    clock = VirtualClock()
    async with Broker(FileStore(tmp_path), SETTINGS, clock) as broker:
        old, kept = await created(broker), await created(broker)
        await add(old, BODY[:100_000])
        clock.now += 80
        await add(kept, BODY[:100_000])
        await broker.sweep()
        assert broker.upload(old.id) is not None
        clock.now += 21
        await broker.sweep()
        assert broker.upload(old.id) is None
        await frames_left.becomes(tmp_path, {kept.id})
        with pytest.raises(NotFound):
            await broker.message(old.id)
        with pytest.raises(MessageAborted):
            async with old.turn(nothing):
                pass
        clock.now += 50
    async with Broker(FileStore(tmp_path), SETTINGS, clock) as broker:
        assert broker.upload(kept.id) is not None
        clock.now += 30
        await broker.sweep()
        assert broker.upload(kept.id) is None
    await frames_left.becomes(tmp_path, ())


async def test_what_somebody_writes_to_is_put_off_before_it_ends(tmp_path: Path) -> None:
    """A crash amid a turn that began shortly before the end of its time costs nothing that was there."""
    clock, path = VirtualClock(), tmp_path / "after"
    async with Broker(FileStore(tmp_path / "before"), SETTINGS, clock) as broker:
        upload = await created(broker)
        await add(upload, BODY[:100_000])
        clock.now += 99
        async with upload.turn(nothing):
            shutil.copytree(tmp_path / "before", path)
    clock.now += 2
    async with Broker(FileStore(path), SETTINGS, clock) as broker:
        await broker.sweep()
        found = broker.upload(upload.id)
        assert found is not None
        await found.touch()
        assert found.offset == sum(map(len, FRAMES[:2]))
        await end(found, BODY[found.offset :])


async def test_a_deleted_upload_is_gone_for_good(tmp_path: Path) -> None:
    """Its writer is told, its file and its row are removed."""
    async with Broker(FileStore(tmp_path), SETTINGS) as broker:
        upload = await created(broker)
        async with upload.turn(nothing):
            await upload.write(BODY[:100_000])
            await broker.delete(upload.id)
            with pytest.raises(MessageAborted):
                await upload.write(BODY[100_000:])
        await frames_left.becomes(tmp_path, ())
    async with Broker(FileStore(tmp_path), SETTINGS) as broker:
        assert broker.upload(upload.id) is None


async def test_a_key_belongs_to_one_upload(broker: Broker) -> None:
    """A second creation takes the first one's place, unless it is from the same source: then it is it."""
    first = await created(broker, "k")
    second = await created(broker, "k")
    assert broker.upload(first.id) is None
    assert second.id != first.id
    source = {"source": "c2FtZQ=="}
    third = await broker.create_upload("a.b", "k", len(BODY), source)
    assert isinstance(third, Upload)
    assert broker.upload(second.id) is None
    for length, metadata, owner in (
        (len(BODY), source, None),
        (len(BODY) + 1, source, None),
        (len(BODY) + 1, {"source": "b3RoZXI="}, None),
    ):
        fourth = await broker.create_upload("a.b", "k", length, metadata, owner)
        assert isinstance(fourth, Upload)
        assert (fourth is third) == ((length, metadata, owner) == (len(BODY), source, None))
        third = fourth
    with pytest.raises(Conflict, match="another publisher"):
        await broker.create_upload("a.b", "k", len(BODY), source, "somebody")


async def test_the_receipt_of_a_parked_upload_is_not_waited_for(broker: Broker) -> None:
    """Nobody knows whether it goes on; one that is being written is waited for until it pauses or ends."""
    upload = await created(broker, "k")
    await add(upload, BODY[:1000])
    with pytest.raises(NotFound):
        await broker.receipt("a.b", "k")
    async with upload.turn(nothing):
        asked = asyncio.create_task(broker.receipt("a.b", "k"))
        await asyncio.sleep(0)
        assert not asked.done()
    with pytest.raises(NotFound):
        await asked
    async with upload.turn(nothing):
        asked = asyncio.create_task(broker.receipt("a.b", "k"))
        await upload.write(BODY[1000:])
        receipt = await upload.seal()
    assert (await asked).id == receipt.id


async def test_writers_and_uploads_are_limited(tmp_path: Path) -> None:
    """Parked uploads do not take the place of those that are written, but there is an end to them too."""
    settings = BrokerSettings(max_open_messages=2, max_uploads=3, sweep_interval=0)
    async with Broker(FileStore(tmp_path), settings) as broker:
        uploads = [await created(broker) for _ in range(3)]
        with pytest.raises(BrokerBusy, match="3 uploads"):
            await created(broker)
        async with uploads[0].turn(nothing), uploads[1].turn(nothing):
            with pytest.raises(BrokerBusy, match="2 messages"):
                async with uploads[2].turn(nothing):
                    pass
            with pytest.raises(BrokerBusy, match="2 messages"):
                await broker.begin("a")
        async with uploads[2].turn(nothing):
            pass


async def test_heads_name_what_has_come(broker: Broker) -> None:
    """Preludes and headers of the whole frames, in their order, and nothing of their payloads."""
    upload = await created(broker)
    await add(upload, BODY[: len(BODY) - 500])
    at, found = 0, b""
    while at < upload.boundary:
        part, at = await broker.upload_heads(upload.id, at, upload.boundary)
        found += part
    at = 0
    while at < upload.boundary:
        header, payload = (int.from_bytes(BODY[at + place :][:4], "little") for place in (8, 12))
        head = BODY[at : at + 20 + header]
        assert found.startswith(head)
        found = found[len(head) :]
        at += len(head) + payload
    assert not found


async def test_frames_that_do_not_belong_are_refused_in_every_turn(broker: Broker) -> None:
    """The order of frames is checked over turns as within one."""
    upload = await created(broker)
    await add(upload, b"".join(FRAMES[:2]))
    upload.cool()
    async with upload.turn(nothing):
        with pytest.raises(FrameError):
            await written(upload, FRAMES[0])
    assert upload.offset == len(FRAMES[0]) + len(FRAMES[1])
    await end(upload, b"".join(FRAMES[2:]))
    assert await stored(broker, upload.id) == BODY
