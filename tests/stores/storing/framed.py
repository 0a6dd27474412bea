"""Messages of many small frames, through a real broker."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from tensorbus.bus.broker import Broker
from tensorbus.bus.broker.readers import Reader
from tensorbus.bus.broker.uploads import Upload
from tensorbus.bus.messages import Receipt
from tensorbus.streaming.entries import Entry, EntryView
from tensorbus.streaming.frames import Kind, encode_frame
from tensorbus.streaming.headers import Envelope, SliceHeader
from tensorbus.streaming.packing import pack, pack_array
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
