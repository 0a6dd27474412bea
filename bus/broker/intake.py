"""The bytes of one message that have come: every frame checked, and kept in memory or in the store.

Strategy. A small message stays in memory, to be stored with its row. Once it outgrows that, its bytes go to
its file, and nothing but the state of the checks stays. That state can be computed again from what is in the
file: so an upload that pauses can be let go of, bytes that turn out to be bad are cut off, and after a crash
the upload goes on behind the last frame that is whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

from tensorbus.bus.stores.base import FrameFile, Part, RemoteFrames
from tensorbus.errors import LimitExceeded, StorageError, StoreDamaged
from tensorbus.streaming.frames import Frame, FrameParser, Kind
from tensorbus.streaming.headers import Envelope, Totals
from tensorbus.streaming.sequence import MessageChecker

from .frame_source import FrameSource
from .kept_frames import known_frames, pieces, verified_end


@dataclass(frozen=True, slots=True)
class Reached:
    """How far an intake is, both checked and kept; replaced as a whole, so that any thread may look at it."""

    boundary: int
    visible: int
    frames: int


class FrameStore(Protocol):
    """What an intake asks of a store, or of the part of one that was lent; see `Store`."""

    def create(self, message_id: str) -> FrameFile: ...

    def reopen(self, message_id: str, size: int) -> FrameFile: ...

    def open_frames(self, message_id: str, size: int | None) -> int | bytes | RemoteFrames: ...

    def check_room(self, size: int) -> None: ...


class Intake:
    """Takes, checks and keeps. All methods block; one thread at a time, but for ``sync``.

    Args:
        limit: of a message, in bytes.
        inline: bytes that may be kept in memory; 0 for none.

    Attributes:
        size: bytes that are kept.
        boundary: end of the last frame that was accepted.
        frames: how many were.
        close_at: where the close frame begins, once it was accepted.
        reached: what of it may be shown.
    """

    def __init__(self, store: FrameStore, message_id: str, limit: int, inline: int) -> None:
        self._store = store
        self._id = message_id
        self._limit = limit
        self._inline = inline
        self._memory: bytearray | None = bytearray() if inline else None
        self._file: FrameFile | None = None
        self._held = 0
        self.size = 0
        self._begin(FrameParser(keep_payload=False), MessageChecker())

    @classmethod
    def reopened(cls, store: FrameStore, message_id: str, limit: int, size: int | None) -> Intake:
        """What was kept of an upload in its file.

        Args:
            size: bytes of it that are known to be good; None after a crash, to find out and cut the rest off.

        Raises:
            StorageError (and its kinds): it cannot be read.
        """
        intake = cls(store, message_id, limit, 0)
        try:
            source = FrameSource(store.open_frames(message_id, None))
        except StoreDamaged:
            if size:
                raise
            return intake  # nothing has come yet
        with closing(source):
            end = verified_end(source) if size is None else size
        intake._go_on(end)
        intake._note()
        return intake

    @property
    def visible(self) -> int:
        """Up to where readers may go: not into the close frame, which is shown when the message is sealed."""
        return self.reached.visible

    @property
    def envelope(self) -> Envelope | None:
        """What the open frame says, once it has come."""
        return self._checker.envelope if self._checker.opened else None

    @property
    def complete(self) -> bool:
        """Whether the close frame has come and everything agrees."""
        return self._checker.complete

    @property
    def shown(self) -> bool:
        """Whether what is kept can be read from the store, as it can once it is not in memory any more."""
        return self._memory is None

    @property
    def held(self) -> int:
        """Bytes that are kept but were not looked at."""
        return self._held

    def fits(self, size: int) -> bool:
        """Whether ``size`` more bytes stay in memory, so that to take them never waits for the disk."""
        return self._memory is not None and self.size + size <= self._inline

    # --- bytes come ----------------------------------------------------------------------------------

    def take(self, parts: Sequence[Part]) -> None:
        """Check ``parts`` and keep them at the end.

        After an error, what had come before can be gone on with by ``recover``.

        Raises:
            FrameError (and its kinds), InvalidName, InvalidRequest, LimitExceeded: it is no valid message.
            StorageFull, StorageError: the store cannot take it.
        """
        for part in parts:
            self._check(part)
        self._keep(parts)
        self._note()

    def hold(self, parts: Sequence[Part]) -> None:
        """Keep ``parts``, unseen, until ``release`` or ``cut``. Raises LimitExceeded, StorageError."""
        self._keep(parts)
        self._held += sum(map(len, parts))

    def release(self) -> None:
        """What was held is good: check it. Raises as ``take``."""
        start, self._held = self.size - self._held, 0
        if self._memory is not None:
            self._check(bytes(self._memory[start:]))
        elif start < self.size:
            with self._source() as source:
                for piece in pieces(source, start):
                    self._check(piece)
        self._note()

    def recover(self) -> None:
        """After an error, or when what is held is not wanted: go back to what is good."""
        self.cut(self.size - self._held if self._held else min(self.boundary, self.size))

    def cut(self, size: int) -> None:
        """Forget everything behind byte ``size``, up to which all was good."""
        self._cut(size)
        self._note()

    def _cut(self, size: int) -> None:
        self._held = 0
        self.size = size
        if self._memory is not None:
            del self._memory[size:]
            self._begin(FrameParser(keep_payload=False), MessageChecker())
            self._check(bytes(self._memory))
            return
        if self._file is None:
            self._begin(FrameParser(keep_payload=False), MessageChecker())
            return
        self._file.close()
        self._go_on(size)

    def _go_on(self, size: int) -> None:
        """Behind byte ``size`` of what is in the file."""
        self.size = size
        self._file = self._store.reopen(self._id, size)
        with self._source() as source:
            self._go_over(source)

    # --- the end -------------------------------------------------------------------------------------

    def finish(self) -> Totals:
        """The body is complete. Raises TruncatedFrames."""
        self._parser.finish()
        return self._checker.totals

    def body(self) -> bytes | None:
        """The whole message, if it is in memory."""
        return None if self._memory is None else bytes(self._memory)

    def spill(self) -> None:
        """What is in memory goes to the file. Raises StorageFull, StorageError."""
        memory, self._memory = self._memory, None
        if memory:
            self._append([memory])

    def rest(self) -> None:
        """Nothing comes for a while. Raises StorageFull, StorageError."""
        if self._file is not None:
            self._file.rest()

    def sync(self) -> None:
        """What was kept before this call is on stable storage. Raises StorageFull, StorageError."""
        if self._file is not None:
            self._file.sync()

    def close(self) -> None:
        """Nothing more comes; what is kept in the file stays."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def discard(self) -> None:
        """Remove what was kept."""
        self._memory = None
        if self._file is not None:
            self._file.discard()
            self._file = None

    # --- inside --------------------------------------------------------------------------------------

    def _source(self) -> closing[FrameSource]:
        return closing(FrameSource(self._store.open_frames(self._id, None)))

    def _begin(self, parser: FrameParser, checker: MessageChecker) -> None:
        self._parser = parser
        self._checker = checker
        self.boundary = 0
        self.frames = 0
        self.close_at: int | None = None
        self._note()

    def _note(self) -> None:
        """All that was checked is kept as well: from now on it may be shown."""
        visible = self.boundary if self.close_at is None else self.close_at
        self.reached = Reached(self.boundary, visible, self.frames)

    def _check(self, part: Part) -> None:
        for frame in self._parser.feed(part):
            self._accept(frame)
            if frame.kind == Kind.OPEN:
                self._check_promise(self._checker.envelope.wire_bytes or 0)

    def _accept(self, frame: Frame) -> None:
        self._checker.accept(frame)
        self.boundary = frame.end
        self.frames += 1
        if frame.kind == Kind.CLOSE:
            self.close_at = frame.offset

    def _check_promise(self, promised: int) -> None:
        """A body that is announced too large is refused before it comes."""
        if promised > self._limit:
            raise LimitExceeded(f"the message announces {promised} bytes; this broker accepts {self._limit}")
        self._store.check_room(promised)

    def _go_over(self, source: FrameSource) -> None:
        """Bring the checks to where they were behind byte ``size``."""
        self._begin(FrameParser(keep_payload=False), MessageChecker())
        for frame in known_frames(source, self.size):
            self._accept(frame)
        self._parser = FrameParser(keep_payload=False, boundary=self.boundary, frames=self.frames)
        for piece in pieces(source, self.boundary):
            for frame in self._parser.feed(piece):
                raise StorageError(f"upload {self._id} has a frame at byte {frame.offset} behind its end")

    def _keep(self, parts: Sequence[Part]) -> None:
        size = self.size + sum(map(len, parts))
        if size > self._limit:
            raise LimitExceeded(f"the body is longer than the {self._limit} bytes that this broker accepts")
        if self._memory is not None and size <= self._inline:
            for part in parts:
                self._memory += part
        else:
            self.spill()
            self._append(parts)
        self.size = size

    def _append(self, parts: Sequence[Part]) -> None:
        if self._file is None:
            self._file = self._store.create(self._id)
        self._file.append(parts)
