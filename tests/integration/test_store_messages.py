"""Messages through a real broker onto a real disk and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import pytest

from storing import frames_left
from storing.framed import BODY, begin, frames_of, publish, read
from tensorbus.bus.broker import Broker, BrokerSettings
from tensorbus.bus.consumers import ConsumerConfig
from tensorbus.bus.stores.file import FileStore
from tensorbus.errors import (
    Conflict,
    InvalidName,
    InvalidRequest,
    MessageAborted,
    NotFound,
)
from tensorbus.streaming.frames import FrameParser
from tensorbus.streaming.raw import RawEncoder


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    """A running broker on an empty directory, with small batches so that there are many."""
    settings = BrokerSettings(
        batch_bytes=4096, sync_bytes=8192, chunk_bytes=1000, max_message_bytes=1 << 20, max_open_messages=8
    )
    async with Broker(FileStore(tmp_path / "data"), settings) as running:
        yield running


# --- in and out --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 1000, 4096, 1 << 20])
async def test_a_body_comes_back_as_it_was_however_it_is_cut(broker: Broker, size: int) -> None:
    """The cuts of the network mean nothing."""
    body = b"".join(BODY)
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    receipt = await publish(broker, frames=pieces)
    assert (receipt.bytes, receipt.frames, receipt.seq) == (len(body), len(BODY), 1)
    assert await read(await broker.open_reader(receipt.id)) == body
    assert await read(await broker.open_reader(receipt.id, 10, 4321)) == body[10:4321]


async def test_a_buffer_may_be_reused_after_write(broker: Broker) -> None:
    """The server reads the network into one buffer again and again."""
    body = b"".join(BODY)
    buffer = bytearray(300)
    async with await begin(broker, "a") as upload:
        for start in range(0, len(body), len(buffer)):
            piece = body[start : start + len(buffer)]
            buffer[: len(piece)] = piece
            await upload.write(memoryview(buffer)[: len(piece)])
            buffer[:] = bytes(len(buffer))
        receipt = await upload.seal()
    assert await read(await broker.open_reader(receipt.id)) == body


async def test_what_is_known_of_a_sealed_message(broker: Broker) -> None:
    """Envelope, totals and digest, and the manifest read back from the file."""
    frames = frames_of({"w": b"x" * 5000}, {"num_examples": 812, "site": "a"})
    receipt = await publish(broker, key="round-1/a", frames=frames)
    info = await broker.message(receipt.id)
    assert (info.state, info.seq, info.key, info.topic) == ("sealed", 1, "round-1/a", "fl.sft.updates")
    assert info.headers == {"num_examples": 812, "site": "a"}
    assert (info.container, info.items, info.original_bytes) == ("numpy", 1, 5000)
    assert info.bytes == info.wire_bytes == sum(map(len, frames))
    assert info.digest == receipt.digest
    assert info.sealed is not None and info.sealed >= info.created
    assert [entry["n"] for entry in await broker.manifest(receipt.id)] == ["w"]


async def test_one_item_is_found_by_name(broker: Broker) -> None:
    """The range holds exactly the item's slices; of a view, those of the item it is a view of."""
    receipt = await publish(broker)

    async def slices(name: str) -> list[object]:
        data = await read(await broker.open_reader(receipt.id, *await broker.item_range(receipt.id, name)))
        return [frame.header["n"] for frame in FrameParser().feed(data)]

    assert await slices("weight") == ["weight"] * 5
    assert await slices("bias") == ["bias"]
    assert await slices("tied") == ["bias"]
    assert await slices("empty") == []
    with pytest.raises(NotFound, match="nothing-like-it"):
        await broker.item_range(receipt.id, "nothing-like-it")


async def test_listing_by_filter_in_pages_and_backwards(broker: Broker) -> None:
    """A listing can be continued, in either order."""
    for number in range(5):
        await publish(broker, f"fl.{number % 2}.updates")
    first = await broker.messages("fl.*.updates", limit=3)
    assert ([m.seq for m in first.messages], first.next) == ([1, 2, 3], 3)
    rest = await broker.messages("fl.*.updates", after=first.next, limit=3)
    assert ([m.seq for m in rest.messages], rest.next) == ([4, 5], None)
    back = await broker.messages("fl.0.updates", order="desc", limit=2)
    assert ([m.seq for m in back.messages], back.next) == ([5, 3], 3)
    assert [m.seq for m in (await broker.messages("fl.0.>", after=3, order="desc")).messages] == [1]
    assert [(t.topic, t.messages, t.first_seq, t.last_seq) for t in await broker.topics()] == [
        ("fl.0.updates", 3, 1, 5),
        ("fl.1.updates", 2, 2, 4),
    ]
    with pytest.raises(InvalidRequest):
        await broker.messages(limit=0)
    with pytest.raises(InvalidName):
        await broker.messages("fl.>.x")


async def test_a_page_ends_with_a_mebibyte_of_headers(broker: Broker) -> None:
    """However large headers are, a page has a size; a listing still comes to its end, in either order."""
    encoder = RawEncoder({f"h{number}": "x" * 250 for number in range(60)}, "text/plain", 0)
    frames = [encoder.open(), encoder.close()]
    for _ in range(100):
        await publish(broker, "t", frames=frames)
    orders: list[Literal["asc", "desc"]] = ["asc", "desc"]
    for order in orders:
        found: list[int | None] = []
        page = await broker.messages(limit=1000, order=order)
        while page.next is not None:
            assert sum(len(str(info.headers)) for info in page.messages) < 1_200_000
            found += [info.seq for info in page.messages]
            page = await broker.messages(limit=1000, order=order, after=page.next)
        found += [info.seq for info in page.messages]
        assert found == sorted(range(1, 101), reverse=order == "desc")
        assert len(page.messages) < 50
    await broker.ensure_consumer("c", ConsumerConfig(">", max_ack_pending=1000))
    pulled = [await broker.pull("c", 256) for _ in range(3)]
    assert [delivery.message.seq for part in pulled for delivery in part] == list(range(1, 101))
    assert 50 < len(pulled[0]) < 100


async def test_delete_gives_space_back_but_not_under_a_reader(broker: Broker, tmp_path: Path) -> None:
    """A download that has begun is finished, whatever is deleted meanwhile."""
    receipt = await publish(broker)
    reader = await broker.open_reader(receipt.id)
    await broker.delete(receipt.id)
    assert await read(reader) == b"".join(BODY)
    await reader.aclose()
    await frames_left.becomes(tmp_path / "data", ())
    with pytest.raises(NotFound):
        await broker.message(receipt.id)
    with pytest.raises(NotFound):
        await broker.delete(receipt.id)


async def test_ranges_outside_a_message_are_refused(broker: Broker) -> None:
    """Instead of an empty or endless answer."""
    receipt = await publish(broker)
    for start, end in ((-1, None), (5, 4), (0, receipt.bytes + 1), (receipt.bytes + 1, None)):
        with pytest.raises(InvalidRequest):
            await broker.open_reader(receipt.id, start, end)


async def test_names_never_reach_the_file_system(broker: Broker, tmp_path: Path) -> None:
    """Files are named by generated ids; an id from outside that is none is refused."""
    receipt = await publish(broker, "a.b", key="../../etc/passwd")
    await frames_left.becomes(tmp_path / "data", {receipt.id})
    for name in ("../meta.db", "..", "", "a\0b", "x" * 10_000):
        with pytest.raises(InvalidName):
            await broker.open_reader(name)
        with pytest.raises(InvalidName):
            await broker.delete(name)
        with pytest.raises(InvalidName):
            await broker.begin(name or "..", None)


# --- following ---------------------------------------------------------------------------------------


async def test_a_reader_follows_an_open_message_to_its_seal(broker: Broker) -> None:
    """Every verified frame is there at once, the close frame only when the message is safe."""
    async with await begin(broker, "a") as upload:
        await upload.write(BODY[0])
        reader = await broker.open_reader(upload.id)
        whole = asyncio.create_task(read(await broker.open_reader(upload.id)))
        sent = 0
        for frame, following in zip(BODY[:-1], [*BODY[1:-1], b""], strict=True):
            sent += len(frame)
            assert await reader.span() == (sent - len(frame), len(frame))
            reader.advance(len(frame))
            await upload.write(following[:-1] if following else b"")
            await upload.write(following[-1:])
        waiting = asyncio.create_task(reader.span())
        await upload.write(BODY[-1])
        await asyncio.wait([waiting], timeout=0.05)
        assert not waiting.done(), "the close frame was shown before the message was on the disk"
        assert (await broker.message(upload.id)).state == "open"
        await upload.seal()
        assert await waiting == (sent, len(BODY[-1]))
        reader.advance(len(BODY[-1]))
        assert await reader.span() is None
        await reader.aclose()
        assert await whole == b"".join(BODY)


async def test_half_a_frame_is_not_shown(broker: Broker) -> None:
    """Readers only get bytes whose checksum was right."""
    async with await begin(broker, "a") as upload:
        await upload.write(memoryview(BODY[0] + BODY[1] + BODY[2][:-1]))
        assert (await broker.message(upload.id)).bytes == len(BODY[0] + BODY[1])
        async with await broker.open_reader(upload.id) as reader:
            assert await reader.span() == (0, len(BODY[0] + BODY[1]))
        assert [entry["n"] for entry in await broker.manifest(upload.id)] == [
            "weight",
            "bias",
            "tied",
            "empty",
        ]
        with pytest.raises(Conflict, match="still being published"):
            await broker.item_range(upload.id, "weight")
        assert [m.id for m in (await broker.messages(state="open")).messages] == [upload.id]
        assert (await broker.messages()).messages == ()


async def test_an_aborted_message_ends_its_readers_and_leaves_nothing(broker: Broker, tmp_path: Path) -> None:
    """A publisher who stops half-way is as if he had never begun, and followers are told."""
    async with await begin(broker, "a") as upload:
        await upload.write(memoryview(BODY[0] + BODY[1]))
        reading = asyncio.create_task(read(await broker.open_reader(upload.id)))
    with pytest.raises(MessageAborted, match="publisher stopped"):
        await reading
    with pytest.raises(NotFound):
        await broker.message(upload.id)
    await frames_left.becomes(tmp_path / "data", ())
    assert (await broker.stats()).aborted_total == 1


async def test_deleting_an_open_message_stops_its_publisher(broker: Broker) -> None:
    """The publisher learns of it with the next bytes."""
    async with await begin(broker, "a") as upload:
        await upload.write(BODY[0])
        await broker.delete(upload.id)
        assert upload.aborted
        with pytest.raises(MessageAborted, match="deleted"):
            await upload.write(BODY[1])
        with pytest.raises(MessageAborted):
            await upload.seal()
