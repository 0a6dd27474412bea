"""Messages through a real broker onto a real disk and back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import Literal

import pytest

from tensorbus.bus.broker import Broker, BrokerSettings
from tensorbus.bus.broker.readers import Reader
from tensorbus.bus.broker.uploads import Upload
from tensorbus.bus.consumers import ConsumerConfig
from tensorbus.bus.messages import Receipt
from tensorbus.bus.stores.base import FrameFile, Part
from tensorbus.bus.stores.file import FileStore
from tensorbus.errors import (
    BrokerBusy,
    ChecksumMismatch,
    Conflict,
    InvalidName,
    InvalidRequest,
    LimitExceeded,
    MessageAborted,
    NotFound,
    TensorbusError,
    TruncatedFrames,
)
from tensorbus.streaming.entries import Entry, EntryView
from tensorbus.streaming.frames import FrameParser, Kind, encode_frame
from tensorbus.streaming.headers import Envelope, SliceHeader
from tensorbus.streaming.packing import pack, pack_array
from tensorbus.streaming.raw import RawEncoder
from tensorbus.streaming.tally import Tally


def frames_of(
    items: Mapping[str, bytes | EntryView], headers: Mapping[str, str | int] | None = None, step: int = 1000
) -> list[bytes]:
    """The frames of a message with uint8 tensors, ``step`` bytes a slice; a view has no bytes of its own."""
    entries = [
        Entry(name, "uint8", (4,), view=value)
        if isinstance(value, EntryView)
        else Entry(name, "uint8", (len(value),))
        for name, value in items.items()
    ]
    tally = Tally()
    frames: list[bytes] = []

    def add(kind: Kind, header: Mapping[str, object], payload: bytes = b"") -> None:
        head = encode_frame(kind, header, payload)
        tally.add_head(kind, head, len(payload))
        frames.append(head + payload)

    add(Kind.OPEN, Envelope(headers=headers or {}, container="numpy", items=len(entries)).to_map())
    add(Kind.MANIFEST, {"first": 0}, pack_array([pack(entry.to_map()) for entry in entries]))
    total = 0
    for index, (entry, value) in enumerate(zip(entries, items.values(), strict=True)):
        if isinstance(value, EntryView):
            continue
        total += len(value)
        for offset in range(0, len(value), step):
            part = value[offset : offset + step]
            header = SliceHeader(index, entry.name, entry.dtype, entry.codec, offset, len(part))
            add(Kind.SLICE, header.to_map(), part)
    frames.append(tally.close(items=len(entries), original_bytes=total, clipped=0))
    return frames


BODY = frames_of(
    {"weight": os.urandom(5000), "bias": b"1234", "tied": EntryView("bias", 0, (1,)), "empty": b""}
)


async def begin(broker: Broker, topic: str, key: str | None = None) -> Upload:
    """A new upload, which must not be a duplicate."""
    upload = await broker.begin(topic, key)
    assert isinstance(upload, Upload)
    return upload


async def publish(
    broker: Broker, topic: str = "fl.sft.updates", key: str | None = None, frames: Sequence[bytes] = BODY
) -> Receipt:
    """Publish frames, each in one write."""
    async with await begin(broker, topic, key) as upload:
        for frame in frames:
            await upload.write(frame)
        return await upload.seal()


async def read(reader: Reader) -> bytes:
    """All that a reader yields."""
    async with reader:
        return b"".join([bytes(chunk) async for chunk in reader])


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    """A running broker on an empty directory, with small batches so that there are many."""
    settings = BrokerSettings(
        batch_bytes=4096, sync_bytes=8192, chunk_bytes=1000, max_message_bytes=1 << 20, max_open_messages=8
    )
    async with Broker(FileStore(tmp_path / "data"), settings) as running:
        yield running


def stored_files(tmp_path: Path) -> list[str]:
    """Names in the folder of frames."""
    return sorted(path.name for path in (tmp_path / "data" / "frames").iterdir())


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
    assert stored_files(tmp_path) == []
    assert await read(reader) == b"".join(BODY)
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
    assert stored_files(tmp_path) == [f"{receipt.id}.frames"]
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
    assert stored_files(tmp_path) == []
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
    assert stored_files(tmp_path) == [f"{before.id}.frames"]


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
    assert stored_files(tmp_path) == [f"{second.id}.frames"]


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
        assert stored_files(tmp_path) == [f"{receipt.id}.frames"]
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
