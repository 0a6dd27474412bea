"""Relay: a message that is passed on unopened, with headers of its own.

Strategy. A slice frame says nothing of the message that it is in, nor does a manifest frame. So of a message
that was received whole, as a file of frames, all of these are sent on byte for byte, checksums included; only
the open frame, which has the headers, and the close frame, which has the digest of the whole, are made anew.
Whoever decodes it gets the very bits that a receiver of the first message gets, whatever the codecs are.

Heads and manifest are checked when the file is opened, each payload when it is read to be sent. Memory is
that of the manifest and one frame. `ArrivingRelay` is the same for a message that is still being received.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol

from tensorbus.codecs.dtypes import dtype
from tensorbus.codecs.item import Item
from tensorbus.errors import (
    FrameSequenceError,
    StorageError,
    StoreDamaged,
    TensorbusError,
    UnsupportedContainer,
)

from . import checksum
from .container import CLOSE_BYTES, EncodedFrame
from .frames import CHECKED, MAGIC, PRELUDE, VERSION, Frame, Kind, encode_frame
from .headers import Envelope, HeaderValue, SliceHeader, Totals
from .limits import DEFAULT_LIMITS, FRAME_BYTES
from .packing import unpack
from .part_file import FileReader
from .resumption import Resumption
from .sequence import MessageChecker

_NOTHING = memoryview(b"")


@dataclass(frozen=True, slots=True)
class Head:
    """What stands before a payload in a file of frames.

    Attributes:
        head: prelude and header.
        payload_len: bytes of the payload behind it.
        position: of the payload in the file.
    """

    kind: Kind
    head: bytes
    payload_len: int
    position: int

    @property
    def end(self) -> int:
        """Position of the first byte behind the frame."""
        return self.position + self.payload_len


class Relayed(Protocol):
    """A message that is passed on: a `Source` whose frames are there, or will be."""

    @property
    def identity(self) -> str:
        """Equal only for equal bytes, also in a later process."""
        ...

    @property
    def envelope(self) -> Envelope:
        """Of that message."""
        ...

    @property
    def original_bytes(self) -> int:
        """Of its values."""
        ...

    @property
    def body_bytes(self) -> int | None:
        """Of all its frames but the first and the last, where they are known."""
        ...

    @property
    def totals(self) -> Totals:
        """Of that message; known after all of ``body``."""
        ...

    def body(self) -> Iterator[Head]:
        """All frames but the first and the last. Raises StoreDamaged, StorageError."""
        ...

    def read_into(self, head: Head, out: memoryview) -> None:
        """The payload of a frame, checked. Raises StoreDamaged, StorageError."""
        ...


class RelaySource:
    """A file of frames, the whole body of a message, to be published as it is: a `Relayed`.

    Args:
        path: as `Message.save_frames` wrote it.
        identity: see `Relayed`; None is the digest.

    Attributes:
        envelope: of the message in the file.
        digest: of that message, in hex.

    Raises:
        StorageError: the file cannot be read.
        StoreDamaged: it does not hold one whole message.
    """

    def __init__(self, path: str | os.PathLike[str], identity: str | None = None) -> None:
        self._file = FileReader(path)
        try:
            self.envelope, self.totals = self._check()
        except StorageError:
            self.close()
            raise
        except TensorbusError as error:
            self.close()
            raise StoreDamaged(f"{self._file.path} holds no whole message: {error}") from error
        self.digest = self.totals.digest.hex()
        self.identity = identity or self.digest
        self.original_bytes = self.totals.original_bytes

    @property
    def kind(self) -> str:
        """Of the container."""
        return self.envelope.container

    @property
    def metadata(self) -> Mapping[str, str]:
        """Of the container."""
        return self.envelope.metadata

    def items(self) -> Sequence[Item]:
        """See `Source`; but what is encoded has no values. Raises UnsupportedContainer."""
        raise UnsupportedContainer(f"{self._file.path} is encoded already: it can only be passed on as it is")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def body(self) -> Iterator[Head]:
        """All frames but the first and the last. Raises StoreDamaged, StorageError."""
        for head in self._heads():
            if head.kind not in (Kind.OPEN, Kind.CLOSE):
                yield head

    @property
    def body_bytes(self) -> int:
        """Of these frames."""
        return self._body_bytes

    def read_into(self, head: Head, out: memoryview) -> None:
        """The payload of a frame, checked. Raises StoreDamaged, StorageError."""
        payload_into(self._file, head, out)

    def _heads(self) -> Iterator[Head]:
        at = 0
        while at < self._file.size:
            head = head_at(self._file, at, self._file.size)
            yield head
            at = head.end

    def _check(self) -> tuple[Envelope, Totals]:
        """Go through all heads, and the manifest."""
        checker = MessageChecker()
        body = at = 0
        for head in self._heads():
            payload = _NOTHING
            if head.kind is not Kind.SLICE:
                payload = memoryview(bytearray(head.payload_len))
                self.read_into(head, payload)
            prelude, size = head.head[: PRELUDE.size], head.end - at
            header = unpack(head.head[PRELUDE.size :])
            checker.accept(Frame(head.kind, header, payload, head.payload_len, at, prelude, size))
            body += size if head.kind in (Kind.MANIFEST, Kind.SLICE) else 0
            at = head.end
        checker.finish()
        self._body_bytes = body
        return checker.envelope, checker.totals


def head_at(file: FileReader, at: int, size: int) -> Head:
    """What stands at byte ``at`` of a file of frames, of which ``size`` bytes are there.

    Raises:
        StoreDamaged: no whole frame does.
        StorageError: the file cannot be read.
    """
    prelude = memoryview(bytearray(min(PRELUDE.size, size - at)))
    file.read_into(prelude, at)
    if len(prelude) == PRELUDE.size:
        magic, version, kind, flags, header_len, payload_len, _ = PRELUDE.unpack(prelude)
        end = at + PRELUDE.size + header_len + payload_len
        right = (magic, version, flags) == (MAGIC, VERSION, 0) and kind in tuple(Kind)
        fits = header_len <= DEFAULT_LIMITS.header and payload_len <= DEFAULT_LIMITS.payload
        if right and fits and end <= size:
            head = bytearray(PRELUDE.size + header_len)
            file.read_into(memoryview(head), at)
            return Head(Kind(kind), bytes(head), payload_len, at + len(head))
    raise StoreDamaged(f"{file.path}: there is no whole frame at byte {at}")


def payload_into(file: FileReader, head: Head, out: memoryview) -> None:
    """The payload of a frame, checked. Raises StoreDamaged, StorageError."""
    file.read_into(out, head.position)
    found = checksum.extend(0, memoryview(head.head)[:CHECKED])
    found = checksum.extend(checksum.extend(found, memoryview(head.head)[PRELUDE.size :]), out)
    if found != PRELUDE.unpack_from(head.head)[-1]:
        raise StoreDamaged(f"{file.path}: the frame at byte {head.position - len(head.head)} is damaged")


class RelayEncoder:
    """An `Encoder` that copies the frames of a `Relayed` message.

    Args:
        headers: of the message that is made.

    Raises:
        InvalidRequest, LimitExceeded: a header is not legal.
    """

    def __init__(self, source: Relayed, headers: Mapping[str, HeaderValue]) -> None:
        self._source = source
        self.original_bytes = source.original_bytes
        self.clipped: dict[str, int] = {}
        self.digest: str | None = None
        rest = None if source.body_bytes is None else source.body_bytes + CLOSE_BYTES
        self.wire_bytes = rest
        while True:  # it settles, as in ContainerEncoder
            self.envelope = replace(source.envelope, headers=headers, wire_bytes=self.wire_bytes)
            self._open_frame = encode_frame(Kind.OPEN, self.envelope.to_map())
            size = None if rest is None else len(self._open_frame) + rest
            if size == self.wire_bytes:
                break
            self.wire_bytes = size

    def new_buffer(self, size: int) -> memoryview:
        """See `Encoder`."""
        return memoryview(bytearray(size))

    def resumption(self) -> Resumption:
        """See `Encoder`. Heads of the body have to be those in the file, checksums included."""
        return _RelayResumption(self._open_frame, self._source)

    def fingerprint(self) -> str:
        """See `Encoder`; the identity of the message that is passed on stands for its values."""
        return hashlib.blake2b(self._open_frame + self._source.identity.encode(), digest_size=24).hexdigest()

    def frames(
        self, acquire: Callable[[], memoryview], threads: int = 1, there: Resumption | None = None
    ) -> Generator[EncodedFrame]:
        """See `Encoder`; there is nothing that several threads could do.

        Raises:
            StoreDamaged, StorageError: the file is damaged, or cannot be read.
            MessageAborted: the message that is passed on was never completed.
        """
        there = there or self.resumption()
        tally = there.tally
        if not there.frames:
            tally.add_head(Kind.OPEN, self._open_frame)
            yield EncodedFrame(self._open_frame)
        for head in islice(self._source.body(), max(0, there.frames - 1), None):
            large = head.payload_len > FRAME_BYTES  # made by somebody else, with frames of his own size
            buffer = None if large else acquire()
            room = memoryview(bytearray(head.payload_len)) if buffer is None else buffer
            payload = room[: head.payload_len]
            self._source.read_into(head, payload)
            tally.add_head(head.kind, head.head, head.payload_len)
            name, original = _stands_for(head)
            yield EncodedFrame(head.head, payload, buffer, name, original)
        self.digest = tally.digest().hex()
        totals = self._source.totals
        yield EncodedFrame(tally.close(totals.items, totals.original_bytes, totals.clipped))


class _RelayResumption(Resumption):
    """Compares whole heads: the frames are known to the bit."""

    def __init__(self, opening: bytes, source: Relayed) -> None:
        super().__init__([(Kind.OPEN, opening, 0)], ())
        self._body = source.body()

    def _compare_slice(self, head: bytes, kind: int, payload_len: int) -> None:
        known = next(self._body, None)
        if known is None or (head, payload_len) != (known.head, known.payload_len):
            raise FrameSequenceError(f"frame {self.frames + 1} is not the one that would be sent")
        self.tally.add_head(known.kind, head, payload_len)
        if known.kind is Kind.SLICE:
            self.slices += 1
            self.original_bytes += _stands_for(known)[1]


def _stands_for(head: Head) -> tuple[str | None, int]:
    """The item of a slice, and the bytes of its values."""
    if head.kind is not Kind.SLICE:
        return None, 0
    header = SliceHeader.parse(unpack(head.head[PRELUDE.size :]))
    return header.name, header.count * dtype(header.dtype).itemsize
