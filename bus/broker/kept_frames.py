"""Goes over the frames that an upload has left in the store, so that it can go on. All functions block."""

from __future__ import annotations

from collections.abc import Iterator

from tensorbus.bus.stores.base import Store
from tensorbus.errors import StoreDamaged, TensorbusError
from tensorbus.streaming.frames import MAGIC, PRELUDE, Frame, FrameParser, Kind
from tensorbus.streaming.packing import unpack
from tensorbus.streaming.sequence import MessageChecker

from .frame_source import FrameSource

PIECE = 256 << 10
"""Bytes read at a time."""

_HEAD = 1024
"""Bytes read for a prelude and nearly every header."""
_ENOUGH = 64 << 10
"""Bytes of heads that are given out at a time."""
_NOTHING = memoryview(b"")


def verified_end(source: FrameSource) -> int:
    """End of the last frame up to which all are whole and in order; a crash may have left more behind it."""
    parser, checker = FrameParser(keep_payload=False), MessageChecker()
    end = 0
    try:
        for piece in pieces(source, 0):
            for frame in parser.feed(piece):
                checker.accept(frame)
                end = frame.end
    except TensorbusError:
        return end
    return end


def pieces(source: FrameSource, start: int) -> Iterator[memoryview]:
    """All bytes from ``start`` on, each piece valid until the next is asked for."""
    buffer = memoryview(bytearray(PIECE))
    while count := source.read_into(buffer, start):
        yield buffer[:count]
        start += count


def known_frames(source: FrameSource, end: int) -> Iterator[Frame]:
    """The frames that lie before byte ``end`` as a whole; they were verified before, so payloads stay unread.

    Raises:
        StoreDamaged: there is no frame where one should be.
    """
    start = 0
    while start + PRELUDE.size <= end:
        head = head_at(source, start)
        _, _, kind, _, header_len, payload_len, _ = PRELUDE.unpack_from(head)
        size = PRELUDE.size + header_len + payload_len
        if start + size > end:
            return
        kept = kind == Kind.MANIFEST
        payload = memoryview(source.read(payload_len, start + len(head))) if kept else _NOTHING
        header = unpack(head[PRELUDE.size :])
        yield Frame(Kind(kind), header, payload, payload_len, start, head[: PRELUDE.size], size)
        start += size


def head_at(source: FrameSource, start: int) -> bytes:
    """Prelude and header of the frame at ``start``, cut short if the bytes end before.

    Raises:
        StoreDamaged: there is no frame.
    """
    head = source.read(_HEAD, start)
    if len(head) < PRELUDE.size or not head.startswith(MAGIC):
        raise StoreDamaged(f"no frame at byte {start} of an upload")
    size = PRELUDE.size + PRELUDE.unpack_from(head)[4]
    if size > len(head) == _HEAD:
        head += source.read(size - _HEAD, start + _HEAD)
    return head[:size]


def heads(store: Store, message_id: str, start: int, end: int) -> tuple[bytes, int]:
    """Preludes and headers of the frames from byte ``start`` on, and where the last of these frames ends.

    Some 64 KiB of them, and none of frames that begin at ``end`` or behind it. Raises StoreDamaged.
    """
    source = FrameSource(store.open_frames(message_id, None))
    found = bytearray()
    try:
        while start < end and len(found) < _ENOUGH:
            head = head_at(source, start)
            found += head
            start += len(head) + PRELUDE.unpack_from(head)[5]
    finally:
        source.close()
    return bytes(found), start
