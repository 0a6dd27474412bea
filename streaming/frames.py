"""Frames: the unit of the wire format, encoded and parsed without any I/O.

A frame is a prelude of 20 bytes (little-endian), a msgpack header and a raw payload::

    magic "TNSB" | version u8 | kind u8 | flags u16 | header length u32 | payload length u32 | CRC-32C u32

The checksum covers the first 16 bytes of the prelude, the header and the payload. docs/wire-format.md is
the full description.

Strategy of the parser. Bytes are fed in chunks of any size; frames come out as they become complete. The
head of a frame (prelude and header, small) is gathered in one bytearray. The lengths are checked against the
limits as soon as the prelude is there, before anything is taken for them. The payload is never looked at:
each piece of it that a chunk holds runs through the checksum at once and is then

- forgotten, when the parser only scans (the broker);
- handed out as it lies in the chunk, when the chunk holds it whole;
- copied into one buffer that is used for every frame and grows no faster than the bytes arrive, unless it was
  received there (`FrameParser.place`).

Only when the last byte of a frame has been fed and the checksum matches is its header decoded. So the frames,
and the errors, depend on the bytes alone and not on how they are cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct

from tensorbus.errors import (
    ChecksumMismatch,
    FrameError,
    LimitExceeded,
    TensorbusError,
    TruncatedFrames,
    UnsupportedVersion,
)

from . import checksum
from .limits import DEFAULT_LIMITS, FRAME_BYTES, FrameLimits
from .packing import pack, unpack

__all__ = [
    "DEFAULT_LIMITS",
    "FRAME_BYTES",
    "PRELUDE",
    "Frame",
    "FrameLimits",
    "FrameParser",
    "Kind",
    "encode_frame",
    "encode_head",
]

MAGIC = b"TNSB"
VERSION = 1
PRELUDE = Struct("<4sBBHIII")
CHECKED = 16
"""Bytes of the prelude under the checksum: all but the checksum itself."""

_LARGE = 64 << 10
"""Bytes of a payload from which a frame is worth being received by itself."""

_PLACE = 1 << 20
"""Bytes of room that ``place`` makes at a time."""

Buffer = bytes | bytearray | memoryview
_CRC = Struct("<I")
_NOTHING = memoryview(b"")


class Kind(IntEnum):
    """What a frame says."""

    OPEN = 1
    MANIFEST = 2
    SLICE = 3
    CLOSE = 4


_KINDS = frozenset(Kind)
_KIND_OF = {int(kind): kind for kind in Kind}


@dataclass(frozen=True, slots=True)
class Frame:
    """One verified frame.

    Attributes:
        kind: what it says.
        header: its msgpack map, decoded but not yet judged.
        payload: valid until the parser is asked for the next frame; empty for slices that were only scanned.
        payload_len: bytes of the payload, whether it was kept or not.
        offset: of its first byte in the message.
        prelude: its first 20 bytes; their chain is the message's digest.
        size: bytes in all.
    """

    kind: Kind
    header: dict[str, object]
    payload: memoryview
    payload_len: int
    offset: int
    prelude: bytes
    size: int

    @property
    def end(self) -> int:
        """Offset of the first byte after it."""
        return self.offset + self.size


def encode_frame(kind: Kind, header: Mapping[str, object], payload: Buffer = b"") -> bytes:
    """Prelude and header of a frame; ``payload`` is to be sent right after them and is only read here.

    Raises:
        LimitExceeded: the header takes more than a receiver accepts.
    """
    return encode_head(kind, pack(header), payload)


def encode_head(kind: Kind, header: bytes, payload: Buffer = b"") -> bytes:
    """``encode_frame`` for a header that is packed already."""
    if len(header) > DEFAULT_LIMITS.header:
        taken, limit = len(header), DEFAULT_LIMITS.header
        raise LimitExceeded(f"the {kind.name.lower()} header takes {taken} bytes, the limit is {limit}")
    checked = PRELUDE.pack(MAGIC, VERSION, kind, 0, len(header), len(payload), 0)[:CHECKED]
    crc = checksum.extend(checksum.extend(checksum.extend(0, checked), header), payload)
    return b"".join((checked, _CRC.pack(crc), header))


class FrameParser:
    """Turns bytes, cut anywhere, into verified frames; see the module's text for how.

    Args:
        limits: what a frame may claim.
        keep_payload: False to only scan: slice payloads are verified and forgotten.
        boundary, frames: where it begins, if ``frames`` frames of ``boundary`` bytes were verified before.
    """

    def __init__(
        self,
        limits: FrameLimits = DEFAULT_LIMITS,
        *,
        keep_payload: bool = True,
        boundary: int = 0,
        frames: int = 0,
    ) -> None:
        self._limits = limits
        self._keep_payload = keep_payload
        self._boundary = boundary
        self._frames = frames
        self._failure: TensorbusError | None = None
        self._room = _NOTHING
        self._last_payload_len = 0
        self._start_frame()

    @property
    def boundary(self) -> int:
        """Offset of the first byte after the last verified frame."""
        return self._boundary

    @property
    def frames(self) -> int:
        """Number of frames verified."""
        return self._frames

    @property
    def missing(self) -> int:
        """Bytes that come next for certain: the rest of a payload, or else of what is known of a head."""
        return self._head_missing or self._payload_missing

    @property
    def large(self) -> bool:
        """Whether the frame that is under way has a large payload, or else the one before had."""
        return (self._payload_len or self._last_payload_len) > _LARGE

    def place(self) -> memoryview | None:
        """Room for the next bytes of a large payload, to be fed from there without being copied.

        None if there is none under way, or it is not kept.
        """
        if self._head_missing or not self._keep or self._payload_len <= _LARGE:
            return None
        start = self._payload_len - self._payload_missing
        self._make_room(start, start + min(self._payload_missing, _PLACE))
        return self._room[start : self._payload_len]

    def feed(self, data: Buffer) -> Iterator[Frame]:
        """Take the next bytes and yield the frames that they complete; the iterator must be exhausted.

        A yielded payload is valid until the iterator is advanced.

        Raises:
            FrameError, UnsupportedVersion, ChecksumMismatch, LimitExceeded: naming frame and byte offset;
                after that the parser takes no more bytes.
        """
        if self._failure is not None:
            raise self._failure
        view = memoryview(data).cast("B")
        at = 0
        try:
            while at < len(view):
                if not self._head and (frame := self._at_once(view, at)) is not None:
                    at += frame.size
                    yield frame
                    continue
                if self._head_missing:
                    at += self._take_head(view[at : at + self._head_missing])
                else:
                    at += self._take_payload(view[at : at + self._payload_missing])
                if not self._head_missing and not self._payload_missing:
                    yield self._complete()
        except TensorbusError as failure:
            self._failure = failure
            raise

    def finish(self) -> None:
        """There are no more bytes.

        Raises:
            TruncatedFrames: they ended in the midst of a frame.
        """
        if not self._head:
            return
        if self._head_missing:
            had, missing, part = len(self._head), self._head_missing, "head"
        else:
            had, missing, part = self._payload_len - self._payload_missing, self._payload_missing, "payload"
        text = f"the bytes end after {had} of the {had + missing} bytes of its {part}"
        raise TruncatedFrames(self._where(text))

    def rewind(self) -> int:
        """Forget the frame that is half there: the next byte fed is the one at the offset returned."""
        self._failure = None
        self._start_frame()
        return self._boundary

    def _at_once(self, view: memoryview, at: int) -> Frame | None:
        """The frame that begins at ``at``, if it is small, lies there whole, and is without fault, as nearly
        always; otherwise it is gone through piece by piece, which finds out what there is to say about it."""
        middle = at + PRELUDE.size
        if middle > len(view):
            return None
        magic, version, number, flags, header_len, payload_len, claimed = PRELUDE.unpack_from(view, at)
        kind = _KIND_OF.get(number)
        size = PRELUDE.size + header_len + payload_len
        if at + size > len(view) or size > _LARGE or kind is None or not header_len:
            return None
        if (magic, version, flags) != (MAGIC, VERSION, 0) or not self._allows(kind, header_len, payload_len):
            return None
        whole = view[at : at + size].tobytes()
        prelude = whole[: PRELUDE.size]
        if checksum.extend(checksum.extend(0, whole[:CHECKED]), whole[PRELUDE.size :]) != claimed:
            return None
        try:
            header = unpack(whole[PRELUDE.size : PRELUDE.size + header_len])
        except FrameError:
            return None
        kept = payload_len and (self._keep_payload or kind is Kind.MANIFEST)
        payload = view[middle + header_len : at + size] if kept else _NOTHING
        frame = Frame(kind, header, payload, payload_len, self._boundary, prelude, size)
        self._last_payload_len = payload_len
        self._boundary += size
        self._frames += 1
        return frame

    def _allows(self, kind: Kind, header_len: int, payload_len: int) -> bool:
        limits = self._limits
        largest = limits.manifest_payload if kind is Kind.MANIFEST else limits.payload
        return header_len <= limits.header and payload_len <= largest

    def _start_frame(self) -> None:
        self._head = bytearray()
        self._head_missing = PRELUDE.size
        self._payload_missing = 0
        self._payload_len = 0
        self._payload = _NOTHING
        self._keep = False
        self._crc = 0

    def _take_head(self, piece: memoryview) -> int:
        self._head += piece
        self._head_missing -= len(piece)
        if self._head_missing:
            return len(piece)
        if len(self._head) == PRELUDE.size:
            self._head_missing = self._read_prelude()
        else:
            self._crc = checksum.extend(checksum.extend(0, self._head[:CHECKED]), self._head[PRELUDE.size :])
            self._payload_missing = self._payload_len
        return len(piece)

    def _read_prelude(self) -> int:
        """Judge the prelude and return the length of the header; nothing has been taken for it yet."""
        magic, version, kind, flags, header_len, payload_len, _ = PRELUDE.unpack(self._head)
        if magic != MAGIC:
            raise FrameError(self._where(f"expected the magic bytes {MAGIC!r}, found {magic!r}"))
        if version != VERSION:
            raise UnsupportedVersion(self._where(f"format version {version}; this release reads {VERSION}"))
        if kind not in _KINDS:
            raise UnsupportedVersion(self._where(f"unknown kind {kind}; a newer release may have written it"))
        if flags:
            raise UnsupportedVersion(self._where(f"unknown flags {flags:#06x}; a newer release knows them"))
        if not header_len:
            raise FrameError(self._where("the header is empty"))
        largest = self._limits.manifest_payload if kind == Kind.MANIFEST else self._limits.payload
        self._check("header", header_len, self._limits.header)
        self._check("payload", payload_len, largest)
        self._payload_len = payload_len
        self._keep = self._keep_payload or kind == Kind.MANIFEST
        return header_len

    def _check(self, what: str, claimed: int, limit: int) -> None:
        if claimed > limit:
            raise LimitExceeded(self._where(f"claims a {what} of {claimed} bytes, the limit is {limit}"))

    def _take_payload(self, piece: memoryview) -> int:
        self._crc = checksum.extend(self._crc, piece)
        if self._keep:
            if len(piece) == self._payload_len:
                self._payload = piece
            else:
                self._store(piece)
        self._payload_missing -= len(piece)
        return len(piece)

    def _store(self, piece: memoryview) -> None:
        start = self._payload_len - self._payload_missing
        end = start + len(piece)
        if piece.obj is not self._room.obj:
            self._make_room(start, end)
            self._room[start:end] = piece
        self._payload = self._room[:end]

    def _make_room(self, start: int, end: int) -> None:
        """Room for the payload up to ``end``, of which all before ``start`` is there."""
        if end > len(self._room):
            # A new buffer instead of a resized one: somebody may still hold a view of the old one.
            grown = memoryview(bytearray(min(self._payload_len, max(end, 2 * len(self._room)))))
            grown[:start] = self._room[:start]
            self._room = grown

    def _complete(self) -> Frame:
        prelude = bytes(self._head[: PRELUDE.size])
        claimed: int = PRELUDE.unpack(prelude)[-1]
        if self._crc != claimed:
            text = f"CRC-32C is {self._crc:#010x}, the prelude says {claimed:#010x}; the bytes were damaged"
            raise ChecksumMismatch(self._where(text))
        try:
            header = unpack(self._head[PRELUDE.size :])
        except FrameError as problem:
            raise FrameError(self._where(f"header: {problem}")) from None
        size = len(self._head) + self._payload_len
        self._last_payload_len = self._payload_len
        kind = Kind(prelude[5])
        frame = Frame(kind, header, self._payload, self._payload_len, self._boundary, prelude, size)
        self._boundary += size
        self._frames += 1
        self._start_frame()
        return frame

    def _where(self, text: str) -> str:
        return f"frame {self._frames + 1} at byte {self._boundary}: {text}"
