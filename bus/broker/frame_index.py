"""Finds things in the frames of a stored message by reading heads only. All functions block.

The frames were verified when they came in, so their checksums are not computed again here: the reader of the
frames does that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from tensorbus.errors import Conflict, NotFound, StoreDamaged
from tensorbus.streaming.entries import Entry, parse_entry
from tensorbus.streaming.frames import MAGIC, PRELUDE, Kind
from tensorbus.streaming.limits import DEFAULT_LIMITS
from tensorbus.streaming.packing import unpack, unpack_array

_HEAD_BYTES = 1024
"""Read at a time: enough for the prelude and nearly every header."""


@dataclass(frozen=True, slots=True)
class FrameHead:
    """Where a frame lies in the body, and its header."""

    kind: Kind
    header: dict[str, object]
    payload: int
    end: int
    start: int


def heads(fd: int, end: int) -> Iterator[FrameHead]:
    """The heads of all frames up to byte ``end``, which is a frame's end.

    Raises:
        StoreDamaged: there is no frame where one should be.
    """
    start = 0
    while start < end:
        head = os.pread(fd, _HEAD_BYTES, start)
        if len(head) < PRELUDE.size or not head.startswith(MAGIC):
            raise StoreDamaged(f"no frame at byte {start} of a stored message")
        _, _, kind, _, header_len, payload_len, _ = PRELUDE.unpack_from(head)
        header = head[PRELUDE.size : PRELUDE.size + header_len]
        payload = start + PRELUDE.size + header_len
        if len(header) < header_len:
            header = _read(fd, header_len, start + PRELUDE.size)
        yield FrameHead(Kind(kind), unpack(header), payload, payload + payload_len, start)
        start = payload + payload_len


def manifest(fd: int, end: int, items: int | None) -> list[dict[str, object]]:
    """The entries of the manifest as they stand on the wire; it ends after ``items`` of them, if known."""
    entries: list[dict[str, object]] = []
    for head in heads(fd, end):
        if items is not None and len(entries) >= items:
            break
        if head.kind == Kind.MANIFEST:
            payload = _read(fd, head.end - head.payload, head.payload)
            entries += unpack_array(payload, DEFAULT_LIMITS.items)
    return entries


def item_range(fd: int, end: int, items: int | None, name: str, sealed: bool) -> tuple[int, int]:
    """First byte and end of an item's slice frames; of a view, those of the item that it is a view of.

    Raises:
        NotFound: the message has no such item.
        Conflict: the message is open, and the item not complete in it.
    """
    entries = [parse_entry(entry) for entry in manifest(fd, end, items)]
    index = _find(entries, name, sealed)
    view = entries[index].view
    if view is not None:
        index = _find(entries, view.of, sealed)
    wanted = entries[index].count
    first: int | None = None
    found = 0
    last = 0
    for head in heads(fd, end):
        if found == wanted:
            break
        if head.kind == Kind.SLICE and head.header["i"] == index:
            first = head.start if first is None else first
            last = head.end
            found += _integer(head.header["c"])
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
    assert isinstance(value, int)
    return value


def _read(fd: int, size: int, offset: int) -> bytes:
    data = os.pread(fd, size, offset)
    if len(data) < size:
        raise StoreDamaged(f"a stored message ends within the frame at byte {offset}")
    return data
