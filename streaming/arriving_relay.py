"""ArrivingRelay: a message that is passed on, see `relay`, while it is still being received.

Strategy. One thread receives: it writes frames to a file, verifies them, and says so. Another sends them on,
from the file, and waits where the verified frames end. The frame that completes the message that is made is
sent only after somebody has said that the one received is complete and stored where it came from: what breaks
off there is never completed here.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence

from tensorbus.codecs.item import Item
from tensorbus.errors import UnsupportedContainer

from .container import CLOSE_BYTES
from .frames import Frame, Kind
from .headers import Envelope, Totals
from .part_file import FileReader
from .relay import Head, head_at, payload_into


class ArrivingRelay:
    """A `Relayed` message of which the end is not known yet. For two threads, and for who watches over them.

    Args:
        identity: of the message that is received: another one for other bytes.
    """

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self._changed = threading.Condition()
        self._file: FileReader | None = None
        self._envelope: Envelope | None = None
        self._open_bytes = self._boundary = 0
        self._totals: Totals | None = None
        self._failure: Exception | None = None

    # --- for who receives ----------------------------------------------------------------------------

    def begin(self, file: FileReader) -> None:
        """This is the file that frames are written to."""
        self._file = file

    def verified(self, frame: Frame) -> None:
        """The next frame is in the file, and belongs there."""
        with self._changed:
            if frame.kind is Kind.OPEN:
                self._envelope, self._open_bytes = Envelope.parse(frame.header), frame.size
            self._boundary = frame.end
            self._changed.notify_all()

    def seal(self, totals: Totals) -> None:
        """All is here, and stored for good where it came from."""
        with self._changed:
            self._totals = totals
            self._changed.notify_all()

    def stop(self, failure: Exception) -> None:
        """There is no more to come: who waits gets ``failure``. The first one counts."""
        with self._changed:
            self._failure = self._failure or failure
            self._changed.notify_all()

    # --- for who sends it on -------------------------------------------------------------------------

    def opened(self) -> Envelope:
        """Wait for the first frame; blocks. Raises what ``stop`` was given."""
        with self._changed:
            self._wait_for(0)
        return self.envelope

    @property
    def envelope(self) -> Envelope:
        """See `Relayed`; after ``opened``."""
        assert self._envelope is not None, "it has not been opened yet"
        return self._envelope

    @property
    def kind(self) -> str:
        """Of the container."""
        return self.envelope.container

    @property
    def metadata(self) -> Mapping[str, str]:
        """Of the container."""
        return self.envelope.metadata

    @property
    def original_bytes(self) -> int:
        """See `Relayed`; as the message announced it."""
        return self.envelope.original_bytes or 0

    @property
    def body_bytes(self) -> int | None:
        """See `Relayed`; None if the message did not announce its size."""
        size = self.envelope.wire_bytes
        return None if size is None else size - self._open_bytes - CLOSE_BYTES

    @property
    def totals(self) -> Totals:
        """See `Relayed`; after all of ``body``."""
        assert self._totals is not None, "it is not complete yet"
        return self._totals

    def items(self) -> Sequence[Item]:
        """See `Source`; but what is encoded has no values. Raises UnsupportedContainer."""
        raise UnsupportedContainer("what is passed on is encoded already: it has no values")

    def body(self) -> Iterator[Head]:
        """See `Relayed`. Blocks where nothing more has come. Raises what ``stop`` was given."""
        at = self._open_bytes
        while True:
            with self._changed:
                size = self._wait_for(at)
            assert self._file is not None
            head = head_at(self._file, at, size)
            if head.kind is Kind.CLOSE:
                with self._changed:
                    while self._totals is None:
                        self._wait()
                return
            yield head
            at = head.end

    def read_into(self, head: Head, out: memoryview) -> None:
        """See `Relayed`."""
        assert self._file is not None
        payload_into(self._file, head, out)

    def close(self) -> None:
        """Close the file; nobody may be at work on it."""
        if self._file is not None:
            self._file.close()

    def _wait_for(self, at: int) -> int:
        """How far the verified frames go: beyond ``at``."""
        while self._boundary <= at:
            self._wait()
        self._check()
        return self._boundary

    def _wait(self) -> None:
        self._check()
        self._changed.wait()
        self._check()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
