"""Stored frames are verified again before anybody gets them: disks forget, and bits flip.

Strategy. A frame's checksum is computed piece by piece through one small buffer per thread, so a frame of any
size takes no memory of its own and nothing is held between two calls. It happens in the thread that sends,
right before it sends, about a mebibyte ahead: the bytes are in the page cache, from where sendfile takes
them, and mostly in the processor's cache too.

A checksum says that a frame is one that was written, not that it is the one that belongs there. Whoever reads
a message from its first byte on also gets the chain of all preludes, which the digest in the message's row
was computed from: the last frames are only let go if it agrees.
"""

from __future__ import annotations

import hashlib
import threading
from typing import NoReturn

from tensorbus.errors import StoreDamaged, StoreUnavailable
from tensorbus.streaming import checksum
from tensorbus.streaming.frames import MAGIC, PRELUDE, VERSION, Kind
from tensorbus.streaming.limits import DEFAULT_LIMITS

from .frame_source import FrameSource

WINDOW = 1 << 20
"""Bytes that are verified ahead of what is sent; a frame is verified whole, so it may be one frame more."""

_BUFFER = 256 << 10
_SMALL = 32 << 10
"""Bytes read to see the next prelude, and small frames with it."""
_CHECKED = 16
"""Bytes of the prelude under its checksum."""
_LARGEST_PAYLOAD = {Kind.MANIFEST: DEFAULT_LIMITS.manifest_payload, Kind.SLICE: DEFAULT_LIMITS.payload}


_KINDS = frozenset(Kind)


class _Buffers(threading.local):
    """One buffer for each thread that verifies."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(_BUFFER))


_BUFFERS = _Buffers()


class Verification:
    """Verifies the frames of one stored message from a byte on. Blocks; one thread at a time.

    Args:
        source: the frames.
        size: bytes of the whole message.
        digest: of its row, as hex digits; checked when the message is verified from its beginning.
        start: the first byte wanted; the frame that it lies in is the first that is verified.

    Attributes:
        verified: everything from ``start`` to here is verified.
        frames: how many frames were.
    """

    def __init__(self, source: FrameSource, size: int, digest: str | None, start: int = 0) -> None:
        self._source = source
        self._size = size
        self._digest = digest
        self._start = start
        self._chain = hashlib.sha256() if start == 0 else None
        self._located = start == 0
        self._failure: StoreDamaged | None = None
        self._held = (0, 0)
        self._doubted = False
        self.verified = 0
        self.frames = 0

    def ahead(self, position: int) -> int:
        """Verify what comes behind ``position``; the end of the verified bytes, which is beyond it.

        ``position`` is not before ``start``, and not the end of the message.

        Raises:
            StoreDamaged: the next frame is not what was stored; nothing of it may be used.
            StoreUnavailable: frames before were not, but those that are stored are.
        """
        if self._failure is not None:
            raise self._failure
        if position < self.verified:
            return self.verified
        view = _BUFFERS.view
        self._held = (0, 0)  # another thread's buffer may have been used last
        try:
            if not self._located:
                self._locate(view)
            while self.verified <= position or (
                self.verified < position + WINDOW and self.verified < self._size
            ):
                self._sure_frame(view)
        except StoreDamaged as damage:
            self._failure = damage
            raise
        return self.verified

    # --- one frame -----------------------------------------------------------------------------------

    def _sure_frame(self, view: memoryview) -> None:
        """One frame; one that is not what was stored is read again if there is a better place for that."""
        try:
            self._frame(view)
        except StoreDamaged:
            if not self._source.doubt():
                raise
            self._held = (0, 0)
            self._doubted = True
            self._frame(view)

    def _frame(self, view: memoryview) -> None:
        start = self.verified
        prelude, kind, end = self._prelude(view, start)
        self._check_place(kind, start, end)
        crc = checksum.extend(0, prelude[:_CHECKED])
        at = start + PRELUDE.size
        while at < end:
            piece = self._piece(view, at, end)
            crc = checksum.extend(crc, piece)
            at += len(piece)
        claimed: int = PRELUDE.unpack(prelude)[-1]
        if crc != claimed:
            raise StoreDamaged(
                f"the frame at byte {start} has CRC-32C {crc:#010x}, its prelude says {claimed:#010x}"
            )
        if self._chain is not None:
            if kind == Kind.CLOSE:
                self._check_digest(self._chain.hexdigest())
            self._chain.update(prelude)
        self.verified = end
        self.frames += 1

    def _prelude(self, view: memoryview, start: int) -> tuple[bytes, Kind, int]:
        """The prelude of the frame at ``start``, its kind, and where the frame ends."""
        first, last = self._held
        if not (first <= start and start + PRELUDE.size <= last):
            first, last = start, start + self._source.read_into(view[:_SMALL], start)
            self._held = (first, last)
        prelude = bytes(view[start - first : start - first + PRELUDE.size])
        if len(prelude) < PRELUDE.size or last - start < PRELUDE.size:
            raise StoreDamaged(f"the frames end at byte {last} of {self._size}")
        magic, version, kind, flags, header_len, payload_len, _ = PRELUDE.unpack(prelude)
        largest = _LARGEST_PAYLOAD.get(kind, 0)
        end = start + PRELUDE.size + header_len + payload_len
        if (
            magic != MAGIC
            or version != VERSION
            or flags
            or kind not in _KINDS
            or not 0 < header_len <= DEFAULT_LIMITS.header
            or payload_len > largest
            or end > self._size
        ):
            raise StoreDamaged(f"there is no frame at byte {start}, where one should begin")
        return prelude, Kind(kind), end

    def _check_place(self, kind: Kind, start: int, end: int) -> None:
        """The open frame is the first one and the close frame the last one, and nowhere else."""
        if (kind == Kind.OPEN) != (start == 0) or (kind == Kind.CLOSE) != (end == self._size):
            raise StoreDamaged(f"the {kind.name.lower()} frame at byte {start} does not belong there")

    def _check_digest(self, digest: str) -> None:
        if self._digest is not None and digest != self._digest:
            if self._doubted or self._source.doubt():
                self._look_again()
            raise StoreDamaged(
                f"its frames have the digest {digest[:16]}…, not {self._digest[:16]}…: "
                "they are whole, but not those of this message"
            )

    def _look_again(self) -> NoReturn:
        """Frames that were read before there was doubt may be whole, and older than those of this message.

        Raises StoreUnavailable if that was so: a part of them has been let go. StoreDamaged if it was not.
        """
        again = Verification(self._source, self._size, self._digest)
        while again.verified < self._size:
            again.ahead(again.verified)
        raise StoreUnavailable(
            "a server that lags behind gave older frames; they are not the message's, ask again"
        )

    def _piece(self, view: memoryview, at: int, end: int) -> memoryview:
        """Bytes from ``at`` on, not beyond ``end``, in the buffer."""
        first, last = self._held
        if not first <= at < last:
            # Large frames are read to their end and no further, so that the pieces need not be cut.
            wanted = min(_BUFFER, end - at if end - at > _SMALL else _SMALL)
            first, last = at, at + self._source.read_into(view[:wanted], at)
            self._held = (first, last)
            if last == at:
                raise StoreDamaged(f"the frames end at byte {at} of {self._size}")
        return view[at - first : min(last, end) - first]

    def _locate(self, view: memoryview) -> None:
        """Find the frame that the first byte lies in, along the preludes before it."""
        at = 0
        while True:
            _, _, end = self._prelude(view, at)
            if end > self._start:
                break
            at = end
        self.verified = at
        self._located = True


def check_size(source: FrameSource, size: int) -> None:
    """Raise StoreDamaged if there are not as many bytes as there should be."""
    found = source.size
    if found != size:
        raise StoreDamaged(f"its frames take {found} bytes instead of {size}")
