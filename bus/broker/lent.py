"""An upload whose bytes come in at another broker, as the one in the lead sees it.

The other one has the publisher's connection, checks the frames and stores them; this one is told now and then
how far that is, and lists the message in the end. So what it keeps of the frames is what it was told last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tensorbus.bus.stores.base import Part
from tensorbus.errors import StorageError, StoreUnavailable, TruncatedFrames
from tensorbus.streaming.headers import Envelope, Totals

from .intake import Intake, Reached


@dataclass(frozen=True, slots=True)
class Loan:
    """What whoever writes the frames of an upload has to know.

    Attributes:
        id: of the message.
        epoch: of the writing; see `SharedStore`.
        after: the epoch in which the same upload was lent before, if nobody has written to it since; else 0.
        offset: bytes that are kept of it, behind which it goes on.
        fresh: whether it has just been begun.
        length: bytes of the whole body, None if they are not known.
        limit: bytes that it may have.
    """

    id: str
    epoch: int
    after: int
    offset: int
    fresh: bool
    length: int | None
    limit: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the frames of an upload are checked and stored.

    Attributes:
        size: bytes that are stored; may be in the midst of a frame.
        reached: what of it is whole frames.
        envelope: what the open frame says, None before that or if it was told before.
        totals: what the close frame says, once it has come.
        done: whether nothing more is written in this turn: somebody else can go on behind ``size``.
    """

    size: int
    reached: Reached
    envelope: Envelope | None = None
    totals: Totals | None = None
    done: bool = False


class LentIntake:
    """In the place of an `Intake` while the frames come in elsewhere, and until they come in here again.

    Args:
        progress: how far it is.
        epoch: of the other one's writing.
        returned: called when nobody writes any more, with whether the frames are to be removed.

    Attributes:
        held: bytes that nobody has looked at: what is told has been looked at.
        shown: as of an `Intake`.
    """

    held = 0
    shown = True

    def __init__(self, progress: Progress, epoch: int, returned: Callable[[bool], None]) -> None:
        self._progress = progress
        self._envelope = progress.envelope
        self._returned = returned
        self.epoch = epoch

    def hear(self, progress: Progress) -> None:
        """The other one tells how far it is."""
        self._progress = progress
        self._envelope = progress.envelope or self._envelope

    @property
    def done(self) -> bool:
        """Whether the other one has said that all is stored that it has told."""
        return self._progress.done

    @property
    def size(self) -> int:
        """Bytes that are stored."""
        return self._progress.size

    @property
    def reached(self) -> Reached:
        """What of it may be shown."""
        return self._progress.reached

    @property
    def visible(self) -> int:
        """Up to where readers may go."""
        return self._progress.reached.visible

    @property
    def envelope(self) -> Envelope | None:
        """What the open frame says, once it has come."""
        return self._envelope

    @property
    def complete(self) -> bool:
        """Whether the close frame has come and everything agrees."""
        return self._progress.totals is not None

    def finish(self) -> Totals:
        """The body is complete. Raises TruncatedFrames."""
        totals = self._progress.totals
        if totals is None:
            reached = self._progress.reached
            raise TruncatedFrames(
                f"the message ends after {reached.frames} frames and {reached.boundary} bytes, before its "
                "close frame"
            )
        return totals

    def body(self) -> None:
        """It is never in memory."""

    def fits(self, size: int) -> bool:
        """Nothing comes in here."""
        del size
        return False

    def take(self, parts: Sequence[Part]) -> None:
        """Raises StorageError: what comes in here has to be taken by an `Intake`."""
        raise StorageError(f"{sum(map(len, parts))} bytes of an upload that another broker writes came here")

    hold = take

    def recover(self) -> None:
        """The writer has done that before it was done."""

    release = spill = sync = recover

    def rest(self) -> None:
        """Raises StoreUnavailable: it is not known how far the writer has come."""
        if not self._progress.done:
            raise StoreUnavailable("the broker that wrote it is gone")

    def close(self) -> None:
        """What is stored stays."""
        self._returned(False)

    def discard(self) -> None:
        """Nobody wants it."""
        self._returned(True)


def tidy(intake: Intake | LentIntake, failed: bool) -> None:
    """In a worker thread: bring what a writer has left to where the next one can go on."""
    if failed or intake.held:
        intake.recover()
    intake.spill()
    intake.rest()
