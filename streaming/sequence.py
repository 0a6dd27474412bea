"""The order of frames in a message, for whoever checks it: the broker and every receiver.

::

    open (once) → manifest* and slice*, in any mix → close (once) → nothing

Strategy. The manifest declares items; slices then fill the declared items in order, each item from its first
element to its last without a gap, so one cursor (item, element) is all the state that slices need. Views and
empty items have no slices and are passed over. When the open frame announces the number of items, all of them
are declared before the first slice. Writer and checker keep the same running totals; the close frame repeats
them, with a digest that chains the preludes of all frames and through their checksums everything else.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from tensorbus.errors import (
    ChecksumMismatch,
    FrameError,
    FrameSequenceError,
    InvalidName,
    LimitExceeded,
    TensorbusError,
    TruncatedFrames,
)

from .entries import Entry, EntryView, check_item_name, parse_entry
from .frames import Frame, Kind
from .headers import Envelope, SliceHeader, Totals
from .limits import DEFAULT_LIMITS, FrameLimits
from .packing import unpack_array
from .tally import Tally

_SMALL = 512
"""Bytes of a manifest that is kept in mind."""

__all__ = [
    "Entry",
    "EntryView",
    "Envelope",
    "MessageChecker",
    "SliceHeader",
    "Tally",
    "Totals",
    "check_item_name",
    "parse_entry",
]


class MessageChecker:
    """Accepts the frames of one message one by one and refuses the first that does not belong.

    It keeps the manifest and nothing else that grows. After an error it must not be used any more.
    """

    def __init__(self, limits: FrameLimits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._tally = Tally()
        self._envelope: Envelope | None = None
        self._entries: list[Entry] = []
        self._names: dict[str, int] = {}
        self._views_resolved = 0
        self._manifest_bytes = 0
        self._item = 0
        self._element = 0
        self._totals: Totals | None = None
        self._digest = b""

    @property
    def envelope(self) -> Envelope:
        """What the open frame says.

        Raises:
            FrameSequenceError: it has not come yet.
        """
        if self._envelope is None:
            raise FrameSequenceError("the message has not been opened yet")
        return self._envelope

    @property
    def opened(self) -> bool:
        """Whether the open frame has come."""
        return self._envelope is not None

    @property
    def entries(self) -> list[Entry]:
        """The manifest as far as it has come."""
        return self._entries

    @property
    def declared(self) -> bool:
        """Whether the whole manifest is known: all announced items, or the message's end."""
        return self.complete or (self.opened and len(self._entries) == self.envelope.items)

    @property
    def complete(self) -> bool:
        """Whether the close frame has come and everything agrees."""
        return self._totals is not None

    @property
    def totals(self) -> Totals:
        """What the close frame says.

        Raises:
            TruncatedFrames: it has not come yet.
        """
        self.finish()
        assert self._totals is not None
        return self._totals

    @property
    def frames(self) -> int:
        """Number of frames accepted."""
        return self._tally.frames

    @property
    def payload_bytes(self) -> int:
        """Bytes of slice payloads accepted."""
        return self._tally.payload_bytes

    @property
    def digest(self) -> bytes:
        """SHA-256 over the preludes of the frames accepted, without the close frame once it has come."""
        return self._digest if self.complete else self._tally.digest()

    def accept(self, frame: Frame) -> None:
        """Check the next frame against all that came before.

        Raises:
            FrameSequenceError: it is out of order, repeated, after a gap, or contradicts the manifest.
            FrameError, InvalidName, InvalidRequest, LimitExceeded: its header or manifest is malformed.
            ChecksumMismatch: the digest of the whole does not match.
        """
        try:
            self._check_place(frame)
            if frame.kind == Kind.OPEN:
                self._open(frame)
            elif frame.kind == Kind.MANIFEST:
                self._declare(frame)
            elif frame.kind == Kind.SLICE:
                self._advance(SliceHeader.parse(frame.header, self._limits))
            else:
                self._close(frame)
        except TensorbusError as problem:
            place = f"{frame.kind.name.lower()} frame {self._tally.frames + 1} at byte {frame.offset}"
            raise type(problem)(f"{place}: {problem}") from None
        self._tally.add(frame.kind, frame.prelude, frame.size, frame.payload_len)

    def finish(self) -> None:
        """There are no more frames.

        Raises:
            TruncatedFrames: the close frame is missing.
        """
        if not self.complete:
            raise TruncatedFrames(
                f"the message ends after {self._tally.frames} frames and {self._tally.bytes} bytes, "
                "before its close frame"
            )

    def _check_place(self, frame: Frame) -> None:
        if self.complete:
            raise FrameSequenceError("nothing may follow the close frame")
        if self.opened and frame.kind == Kind.OPEN:
            raise FrameSequenceError("the message is open already")
        if not self.opened and frame.kind != Kind.OPEN:
            raise FrameSequenceError("expected an open frame")
        if frame.offset != self._tally.bytes:
            raise FrameSequenceError(f"the frames before it end at byte {self._tally.bytes}")
        if frame.payload_len and frame.kind in (Kind.OPEN, Kind.CLOSE):
            raise FrameError(f"a payload of {frame.payload_len} bytes where none is allowed")
        promised = self._envelope.wire_bytes if self._envelope else None
        if promised is not None and frame.end > promised:
            raise FrameSequenceError(f"it ends at byte {frame.end}, the message promised {promised} bytes")

    def _open(self, frame: Frame) -> None:
        self._envelope = Envelope.parse(frame.header, self._limits)

    # --- manifest ------------------------------------------------------------------------------------

    def _declare(self, frame: Frame) -> None:
        self._manifest_bytes += frame.payload_len
        if self._manifest_bytes > self._limits.manifest:
            raise LimitExceeded(f"the manifest takes more than {self._limits.manifest} bytes")
        first = frame.header.get("first")
        if first != len(self._entries):
            raise FrameSequenceError(f"its first item is number {first!r}, expected {len(self._entries)}")
        announced = self.envelope.items
        room = (self._limits.items if announced is None else announced) - len(self._entries)
        for entry in _parsed(frame.payload, room, self._limits):
            if entry.name in self._names:
                raise InvalidName(f"item {entry.name!r} is declared twice")
            self._names[entry.name] = len(self._entries)
            self._entries.append(entry)

    def _resolve_views(self) -> None:
        """Check the views declared since the last call; a view may stand before the item it lies in."""
        for entry in self._entries[self._views_resolved :]:
            if entry.view:
                self._check_view(entry, entry.view)
        self._views_resolved = len(self._entries)

    def _check_view(self, entry: Entry, view: EntryView) -> None:
        if view.of not in self._names:
            raise FrameSequenceError(f"item {entry.name!r} is a view of {view.of!r}, which is not declared")
        base = self._entries[self._names[view.of]]
        if base.view or base.kind != "tensor" or base.dtype != entry.dtype:
            raise FrameSequenceError(f"item {entry.name!r} cannot be a view of {view.of!r}")
        reach = sum((extent - 1) * stride for extent, stride in zip(entry.shape, view.strides, strict=True))
        last = view.offset + reach if entry.count else view.offset - 1
        if last >= base.count:
            raise FrameSequenceError(f"item {entry.name!r} reaches beyond {view.of!r}, of which it is a view")

    # --- slices --------------------------------------------------------------------------------------

    def _advance(self, header: SliceHeader) -> None:
        self._check_declared()
        self._skip_complete()
        if self._item == len(self._entries):
            raise FrameSequenceError(f"a slice of {header.name!r}, but all declared items are complete")
        entry = self._entries[self._item]
        if header.index != self._item or header.name != entry.name:
            raise FrameSequenceError(
                f"a slice of item {header.index} {header.name!r}, expected item {self._item} {entry.name!r} "
                f"from element {self._element}"
            )
        if header.offset != self._element:
            raise FrameSequenceError(
                f"item {entry.name!r}: the slice starts at element {header.offset}, expected {self._element}"
            )
        missing = entry.sliced - self._element
        if not 1 <= header.count <= missing:
            raise FrameSequenceError(
                f"item {entry.name!r}: a slice of {header.count} elements where {missing} are missing"
            )
        if header.dtype != entry.dtype or header.codec != entry.codec:
            raise FrameSequenceError(f"item {entry.name!r}: the slice's dtype or codec is not the manifest's")
        self._element += header.count

    def _check_declared(self) -> None:
        """Where the number of items was announced, all of them are known before the first slice."""
        announced = self.envelope.items
        if announced is None:
            return
        if len(self._entries) < announced:
            raise FrameSequenceError(f"{len(self._entries)} of {announced} items are declared; expected more")
        if self._views_resolved < announced:
            self._resolve_views()

    def _skip_complete(self) -> None:
        """Move the cursor to the next element that is to come."""
        while self._item < len(self._entries) and self._element == self._entries[self._item].sliced:
            self._item += 1
            self._element = 0

    # --- close ---------------------------------------------------------------------------------------

    def _close(self, frame: Frame) -> None:
        self._resolve_views()
        self._skip_complete()
        if self._item < len(self._entries):
            entry = self._entries[self._item]
            raise FrameSequenceError(f"item {entry.name!r} has {self._element} of {entry.sliced} elements")
        totals = Totals.parse(frame.header)
        envelope = self.envelope
        self._agree("items", totals.items, len(self._entries))
        self._agree("items", totals.items, envelope.items)
        self._agree("frames", totals.frames, self._tally.frames + 1)
        self._agree("payload bytes", totals.payload_bytes, self._tally.payload_bytes)
        self._agree("original bytes", totals.original_bytes, envelope.original_bytes)
        self._agree("bytes", frame.end, envelope.wire_bytes)
        if totals.digest != self._tally.digest():
            raise ChecksumMismatch("the digest does not match the frames that came")
        self._digest = totals.digest
        self._totals = totals

    def _agree(self, what: str, said: int, expected: int | None) -> None:
        if expected is not None and said != expected:
            raise FrameSequenceError(f"it counts {said} {what}, expected {expected}")


def _parsed(payload: memoryview, room: int, limits: FrameLimits) -> Iterable[Entry]:
    """The entries of one manifest frame, of which there may be ``room``."""
    if len(payload) <= _SMALL:
        return _remembered(payload.tobytes(), room, limits)
    return (parse_entry(source, limits) for source in unpack_array(payload, room))


@lru_cache(maxsize=64)
def _remembered(payload: bytes, room: int, limits: FrameLimits) -> tuple[Entry, ...]:
    """Of a small manifest, which is often that of the message before."""
    return tuple(parse_entry(source, limits) for source in unpack_array(payload, room))
