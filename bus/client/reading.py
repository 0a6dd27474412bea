"""Reading: what becomes of the frames of a download, in a worker thread.

Strategy. A worker receives, checks and decodes; while it does, the kernel's buffer fills, and when that is
full, the broker is made to wait (TCP). Where the bytes come by way of the event loop, the connection reads
the next piece meanwhile. So two pieces and one decoded slice are all there are; and of slices that are handed
out undecoded one frame, as it was received.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from typing import Protocol, TypeVar

from tensorbus.streaming.container import SliceEvent
from tensorbus.streaming.frames import Frame, FrameParser

from .downloads import Take
from .passes import Pass
from .progress import STEP, Progress, ProgressReporter

T = TypeVar("T")


class Threads(Protocol):
    """Where decoding is done."""

    async def in_thread(self, function: Callable[[], T]) -> T: ...


class Pieces(Protocol):
    """Where frames come from; see `Download`."""

    parser: FrameParser
    complete: bool

    def pieces(self) -> AsyncGenerator[bytes]: ...

    def moves(self, take: Take, enough: int) -> AsyncGenerator[None]: ...


class Reading:
    """One pass over a message or an item.

    Args:
        total_on_wire, total_original: what is to come in bytes, where it is known.
    """

    def __init__(
        self,
        connection: Threads,
        download: Pieces,
        over: Pass,
        reporter: ProgressReporter,
        total_on_wire: int | None,
        total_original: int | None,
    ) -> None:
        self._connection = connection
        self._download = download
        self._pass = over
        self._reporter = reporter
        self._total_on_wire = total_on_wire
        self._total_original = total_original
        self._original = 0
        self._item: str | None = None
        self._frames: Iterator[Frame] = iter(())
        self._event: SliceEvent | None = None
        download.complete = over.complete

    async def run(self) -> object:
        """Read to the end; what the pass made. If it fails or is cancelled, nothing is left behind."""
        try:
            enough = STEP if self._reporter.wanted else 64 * STEP
            async with aclosing(self._download.moves(self._take_all, enough)) as moves:
                async for _ in moves:
                    await self._report()
            made = await self._connection.in_thread(self._pass.finish)
        except BaseException:
            self._pass.abort()
            raise
        await self._reporter.finish()
        return made

    async def slices(self) -> AsyncGenerator[SliceEvent]:
        """The slices one by one, each valid until the next is asked for."""
        try:
            async with aclosing(self._download.moves(self._take_next, 64 * STEP)) as moves:
                async for _ in moves:
                    event, self._event = self._event, None
                    if event is not None:
                        yield event
                        del event  # its payload is worth nothing now
                    await self._report()
            await self._connection.in_thread(self._pass.finish)
        except BaseException:
            self._pass.abort()
            raise
        await self._reporter.finish()

    def _take_all(self, piece: bytes | memoryview) -> bool:
        frames = self._download.parser.feed(piece)
        while self._take_one(frames) is not None:
            pass
        return False

    def _take_next(self, piece: bytes | memoryview) -> bool:
        """Take up to the next slice; whether there is one, and perhaps more behind it."""
        if piece:
            self._frames = self._download.parser.feed(piece)
        self._event = self._take_one(self._frames)
        return self._event is not None

    def _take_one(self, frames: Iterator[Frame]) -> SliceEvent | None:
        """Take frames up to the next slice; None when the piece is used up."""
        for frame in frames:
            event = self._pass.accept(frame)
            self._download.complete = self._pass.complete
            if event is not None:
                self._original += event.count * event.spec.dtype.itemsize
                self._item = event.spec.name
                return event
        return None

    async def _report(self) -> None:
        await self._reporter.report(
            Progress(
                self._download.parser.boundary,
                self._total_on_wire,
                self._original,
                self._total_original,
                self._item,
            )
        )
