"""A key whose message is damaged can be published again, and nobody gets twice what they have settled."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from storing import frames_left
from tensorbus.bus.broker import Broker, BrokerSettings
from tensorbus.bus.broker.batches import Record
from tensorbus.bus.broker.uploads import Upload
from tensorbus.bus.consumers import ConsumerConfig
from tensorbus.bus.messages import Receipt
from tensorbus.bus.stores.file import FileStore
from tensorbus.errors import StoreDamaged
from tensorbus.streaming.raw import RawEncoder

TOPIC, KEY = "a.b", "round-1/site-a"
SMALL, LARGE = 1000, 200_000


def body(size: int) -> bytes:
    """The frames of a message of random bytes."""
    encoder = RawEncoder({}, "application/octet-stream", size)
    opening = encoder.open()
    slices = b"".join(head + bytes(payload) for head, payload in encoder.slices(os.urandom(size)))
    return opening + slices + encoder.close()


async def in_one_request(broker: Broker, frames: bytes) -> Receipt:
    """As a POST does."""
    upload = await broker.begin(TOPIC, KEY, len(frames))
    if isinstance(upload, Receipt):
        return upload
    async with upload:
        await upload.write(frames)
        return await upload.seal()


async def in_turns(broker: Broker, frames: bytes) -> Receipt:
    """As tus does."""
    upload = await broker.create_upload(TOPIC, KEY, len(frames))
    if isinstance(upload, Receipt):
        return upload
    for part in (frames[: len(frames) // 2], frames[len(frames) // 2 :]):
        async with upload.turn(lambda: None):
            await upload.write(part)
            await upload.flush()
            if upload.complete:
                return await upload.seal()
    raise AssertionError("it was not complete")


async def in_a_batch(broker: Broker, frames: bytes) -> Receipt:
    """Among others."""
    before, outcome = await broker.publish_batch(TOPIC, [Record(None, body(10)), Record(KEY, frames)])
    assert isinstance(outcome, Receipt) and isinstance(before, Receipt)
    await broker.delete(before.id)
    return outcome


async def find_damage(broker: Broker, message_id: str) -> None:
    """It is put aside."""
    broker.scrub()
    assert message_id in dict((await broker.scrub_end()).damaged)
    with pytest.raises(StoreDamaged):
        await broker.message(message_id)


async def handed(broker: Broker, name: str, *, follow: bool = False) -> list[tuple[str, str]]:
    """Message and token of all that a consumer is handed now."""
    return [(one.message.id, one.token) for one in await broker.pull(name, 10, follow=follow)]


async def a_damaged_message(broker: Broker, path: Path, size: int) -> Receipt:
    """Settled by ``done``, refused by ``refused``, in the hands of ``late``, not yet seen by ``new``."""
    for name in ("done", "refused", "late"):
        await broker.ensure_consumer(name, ConsumerConfig("a.*"))
    first = await in_one_request(broker, body(size))
    tokens = {name: (await handed(broker, name))[0][1] for name in ("done", "refused", "late")}
    await broker.ack("done", tokens["done"])
    await broker.term("refused", tokens["refused"])
    await broker.ensure_consumer("new", ConsumerConfig("a.*"))
    await broker.ensure_consumer("too-late", ConsumerConfig("a.*", start="new"))
    await frames_left.spoil(path, first.id)
    await find_damage(broker, first.id)
    return first


Way = Callable[[Broker, bytes], Awaitable[Receipt]]


@pytest.mark.parametrize(
    ("way", "size"),
    [(in_one_request, SMALL), (in_one_request, LARGE), (in_turns, LARGE), (in_a_batch, SMALL)],
)
async def test_a_damaged_message_is_replaced_under_its_key(tmp_path: Path, way: Way, size: int) -> None:
    """Who has settled it, or whose position was behind it, gets nothing; the others get the new one, once."""
    settings = BrokerSettings(sweep_interval=0)
    async with Broker(FileStore(tmp_path), settings) as broker:
        first = await a_damaged_message(broker, tmp_path, size)
        frames = body(size)
        again = await way(broker, frames)
        assert not again.duplicate and again.id != first.id and again.seq > first.seq
        assert (await way(broker, body(size))) == Receipt(
            again.id, again.seq, TOPIC, KEY, again.bytes, again.frames, again.digest, duplicate=True
        )
        assert first.id not in {each.id for each in (await broker.damaged()).damaged}
        assert first.id not in await frames_left.ids(tmp_path)
        assert not list(tmp_path.rglob(f"{first.id}.frames"))  # nor where it was put aside
    async with Broker(FileStore(tmp_path), settings) as broker:
        assert (await broker.receipt(TOPIC, KEY)).id == again.id
        for name in ("done", "refused", "too-late"):
            assert (await broker.consumer(name)).backlog == 0
            assert await handed(broker, name) == []
        for name in ("late", "new"):
            ((message_id, token),) = await handed(broker, name)
            assert message_id == again.id
            await broker.ack(name, token)
            assert await handed(broker, name) == []
        async with await broker.open_reader(again.id) as reader:
            assert b"".join([bytes(chunk) async for chunk in reader]) == frames
        broker.scrub()
        report = await broker.scrub_end()
        assert report.rows == () and report.orphans == ()


async def test_who_has_settled_it_does_not_follow_its_replacement(tmp_path: Path) -> None:
    """Not while it is open either; and an upload that replaces goes on after a restart."""
    settings = BrokerSettings(sweep_interval=0)
    frames = body(LARGE)
    async with Broker(FileStore(tmp_path), settings) as broker:
        await a_damaged_message(broker, tmp_path, LARGE)
        upload = await broker.create_upload(TOPIC, KEY, len(frames))
        assert isinstance(upload, Upload)
        async with upload.turn(lambda: None):
            await upload.write(frames[: LARGE // 2])
        assert await handed(broker, "done", follow=True) == []
        assert [message for message, _ in await handed(broker, "new", follow=True)] == [upload.id]
    async with Broker(FileStore(tmp_path), settings) as broker:
        upload = broker.upload(upload.id)
        assert upload is not None
        async with upload.turn(lambda: None):
            assert await handed(broker, "done", follow=True) == []
            await upload.write(frames[upload.offset or 0 :])
            receipt = await upload.seal()
        assert (receipt.id, receipt.duplicate) == (upload.id, False)
        assert await handed(broker, "done") == []
        assert [message for message, _ in await handed(broker, "late")] == [upload.id]


async def test_what_is_whole_again_is_not_replaced(tmp_path: Path) -> None:
    """Its file is brought back while its replacement is on its way: the key is the first one's."""
    settings = BrokerSettings(sweep_interval=0)
    async with Broker(FileStore(tmp_path), settings) as broker:
        first = await in_one_request(broker, body(LARGE))
        bring_back = await frames_left.spoil(tmp_path, first.id)
        await find_damage(broker, first.id)
        frames = body(LARGE)
        upload = await broker.begin(TOPIC, KEY, len(frames))
        assert isinstance(upload, Upload)
        async with upload:
            await upload.write(frames)
            await bring_back()
            broker.scrub()
            await broker.scrub_end()
            receipt = await upload.seal()
        assert (receipt.id, receipt.duplicate) == (first.id, True)
        assert [info.id for info in (await broker.messages()).messages] == [first.id]
