"""Finds things in the frames of a stored message by reading heads only. All functions block.

Checksums are not computed here, but of the manifest, which leaves the broker as it is: a head that lies leads
to frames that the reader of the frames then refuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tensorbus.errors import Conflict, FrameError, NotFound, StoreDamaged
from tensorbus.streaming import checksum
from tensorbus.streaming.entries import Entry, parse_entry
from tensorbus.streaming.frames import MAGIC, PRELUDE, Kind
from tensorbus.streaming.limits import DEFAULT_LIMITS
from tensorbus.streaming.packing import unpack, unpack_array

from .frame_source import FrameSource

_HEAD_BYTES = 1024
"""Read at a time: enough for the prelude and nearly every header."""
_CHECKED = 16
"""Bytes of the prelude under its checksum."""


@dataclass(frozen=True, slots=True)
class FrameHead:
    """Where a frame lies in the body, and its header."""

    kind: Kind
    header: dict[str, object]
    payload: int
    end: int
    start: int


def heads(source: FrameSource, end: int) -> Iterator[FrameHead]:
    """The heads of all frames up to byte ``end``, which is a frame's end.

    Raises:
        StoreDamaged: there is no frame where one should be.
    """
    start = 0
    while start < end:
        head = source.read(_HEAD_BYTES, start)
        if len(head) < PRELUDE.size or not head.startswith(MAGIC):
            raise StoreDamaged(f"there is no frame at byte {start}, where one should begin")
        _, _, kind, _, header_len, payload_len, _ = PRELUDE.unpack_from(head)
        header = head[PRELUDE.size : PRELUDE.size + header_len]
        payload = start + PRELUDE.size + header_len
        if len(header) < header_len:
            header = _read(source, min(header_len, DEFAULT_LIMITS.header), start + PRELUDE.size)
        try:
            found = FrameHead(Kind(kind), unpack(header), payload, payload + payload_len, start)
        except (FrameError, ValueError) as problem:
            raise StoreDamaged(f"the head of the frame at byte {start}: {problem}") from problem
        yield found
        start = payload + payload_len


def manifest(source: FrameSource, end: int, items: int | None) -> list[dict[str, object]]:
    """The entries of the manifest as they stand on the wire; it ends after ``items`` of them, if known.

    Raises:
        StoreDamaged: a frame of it is not what was stored.
    """
    entries: list[dict[str, object]] = []
    for head in heads(source, end):
        if items is not None and len(entries) >= items:
            break
        if head.kind == Kind.MANIFEST:
            entries += unpack_array(_verified_payload(source, head), DEFAULT_LIMITS.items)
    return entries


def item_range(source: FrameSource, end: int, items: int | None, name: str, sealed: bool) -> tuple[int, int]:
    """First byte and end of an item's slice frames; of a view, those of the item that it is a view of.

    Raises:
        NotFound: the message has no such item.
        Conflict: the message is open, and the item not complete in it.
    """
    entries = [parse_entry(entry) for entry in manifest(source, end, items)]
    index = _find(entries, name, sealed)
    view = entries[index].view
    if view is not None:
        index = _find(entries, view.of, sealed)
    wanted = entries[index].count
    first: int | None = None
    found = 0
    last = 0
    for head in heads(source, end):
        if found == wanted:
            break
        if head.kind == Kind.SLICE and head.header["i"] == index:
            first = head.start if first is None else first
            last = head.end
            found += _integer(head.header["c"])
    if found < wanted and sealed:
        raise StoreDamaged(f"{wanted - found} elements of the item {name[:80]!r} are not in its frames")
    if found < wanted:
        raise _incomplete(name)
    return (0, 0) if first is None else (first, last)


def _find(entries: list[Entry], name: str, sealed: bool) -> int:
    for index, entry in enumerate(entries):
        if entry.name == name:
            return index
    if not sealed:
        raise _incomplete(name)
    raise NotFound(f"the message has no item {name[:80]!r}; its manifest names the {len(entries)} it has")


def _incomplete(name: str) -> Conflict:
    return Conflict(f"item {name[:80]!r} is not complete yet: the message is still being published")


def _integer(value: object) -> int:
    if not isinstance(value, int):
        raise StoreDamaged(f"a slice header has {value!r} where a number should be")
    return value


def _verified_payload(source: FrameSource, head: FrameHead) -> bytes:
    limit = PRELUDE.size + DEFAULT_LIMITS.header + DEFAULT_LIMITS.manifest_payload
    frame = _read(source, min(head.end - head.start, limit), head.start)
    crc = checksum.extend(checksum.extend(0, frame[:_CHECKED]), frame[PRELUDE.size :])
    if crc != PRELUDE.unpack_from(frame)[-1]:
        raise StoreDamaged(f"the manifest frame at byte {head.start} has CRC-32C {crc:#010x}, not its own")
    return frame[head.payload - head.start :]


def _read(source: FrameSource, size: int, offset: int) -> bytes:
    data = source.read(size, offset)
    if len(data) < size:
        raise StoreDamaged(f"its frames end within the one at byte {offset}")
    return data
