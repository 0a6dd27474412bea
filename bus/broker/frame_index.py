"""Finds things in the frames of a stored message by reading heads only. All functions block.

Checksums are not computed here, but of the manifest, which leaves the broker as it is: a head that lies leads
to frames that the reader of the frames then refuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from tensorbus.errors import Conflict, FrameError, NotFound, StoreDamaged
from tensorbus.streaming import checksum
from tensorbus.streaming.entries import Entry, parse_entry
from tensorbus.streaming.frames import MAGIC, PRELUDE, Kind
from tensorbus.streaming.limits import DEFAULT_LIMITS
from tensorbus.streaming.packing import unpack, unpack_array

from .frame_source import FrameSource

_HEAD_BYTES = 1024
"""Read at a time: enough for the prelude and nearly every header."""
MANIFEST_PART = 1000
"""Entries of a manifest that are read at a time."""
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


@dataclass(frozen=True, slots=True)
class ManifestPlace:
    """How far a manifest was read.

    Attributes:
        frame: byte at which the next frame begins, or the one that was not read to its end.
        entry: how many entries of that were read.
        found: how many entries in all.
    """

    frame: int = 0
    entry: int = 0
    found: int = 0


def heads(source: FrameSource, end: int, start: int = 0) -> Iterator[FrameHead]:
    """The heads of all frames from byte ``start`` up to ``end``, which are ends of frames.

    Raises:
        StoreDamaged: there is no frame where one should be.
    """
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


def manifest_part(
    source: FrameSource, end: int, items: int | None, place: ManifestPlace
) -> tuple[list[dict[str, object]], ManifestPlace | None]:
    """The next entries of the manifest as they stand on the wire, and where to go on; None is its end.

    A manifest may be many times larger than what a request may hold, so it is read bit by bit. It ends after
    ``items`` entries, if that is known. Raises StoreDamaged: a frame of it is not what was stored.
    """
    for head in heads(source, end, place.frame):
        if items is not None and place.found >= items:
            break
        if head.kind == Kind.MANIFEST:
            entries = unpack_array(_verified_payload(source, head), DEFAULT_LIMITS.items)
            part = list(islice(entries, place.entry, place.entry + MANIFEST_PART))
            found = place.found + len(part)
            if len(part) < MANIFEST_PART:
                return part, ManifestPlace(head.end, 0, found)
            return part, ManifestPlace(head.start, place.entry + len(part), found)
    return [], None


def item_range(source: FrameSource, end: int, items: int | None, name: str, sealed: bool) -> tuple[int, int]:
    """First byte and end of an item's slice frames; of a view, those of the item that it is a view of.

    Raises:
        NotFound: the message has no such item.
        Conflict: the message is open, and the item not complete in it.
    """
    index, entry = _find(source, end, items, name, sealed)
    if entry.view is not None:
        index, entry = _find(source, end, items, entry.view.of, sealed)
    wanted = entry.count
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


def _find(source: FrameSource, end: int, items: int | None, name: str, sealed: bool) -> tuple[int, Entry]:
    """The item of a name and its place in the manifest, of which no more than an entry is held at a time."""
    index = 0
    for head in heads(source, end):
        if items is not None and index >= items:
            break
        if head.kind == Kind.MANIFEST:
            for entry in unpack_array(_verified_payload(source, head), DEFAULT_LIMITS.items):
                if entry.get("n") == name:
                    return index, parse_entry(entry)
                index += 1
    if not sealed:
        raise _incomplete(name)
    raise NotFound(f"the message has no item {name[:80]!r}; its manifest names the {index} it has")


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
