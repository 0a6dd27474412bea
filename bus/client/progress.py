"""Progress of a transfer, and who is told of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a transfer is.

    Attributes:
        bytes_on_wire: bytes of the message body that have left, or have arrived and been verified.
        total_on_wire: of the whole body, where it is known beforehand.
        bytes_original: the same values at their original precision, in bytes.
        total_original: of the whole container, where it is known beforehand.
        item: name of the item that is under way; None when all is done.
    """

    bytes_on_wire: int
    total_on_wire: int | None
    bytes_original: int
    total_original: int | None
    item: str | None


STEP = 1 << 20
"""Bytes after which somebody who wants to know hears of the progress."""

ProgressCallback = Callable[[Progress], Awaitable[object] | None]
"""Called on the event loop, in order; what it returns is awaited if it can be."""


class ProgressReporter:
    """Tells a callback of progress, and only of progress.

    A transfer that is tried again starts from the front; the callback hears nothing until it is further than
    it ever was.
    """

    def __init__(self, callback: ProgressCallback | None) -> None:
        self._callback = callback
        self._furthest = Progress(-1, None, 0, None, None)

    @property
    def wanted(self) -> bool:
        """Whether anybody listens."""
        return self._callback is not None

    async def report(self, progress: Progress) -> None:
        """The transfer has got so far."""
        if progress.bytes_on_wire > self._furthest.bytes_on_wire:
            self._furthest = progress
            await self._tell(progress)

    async def finish(self) -> None:
        """The transfer is complete and confirmed."""
        last = self._furthest
        final = replace(last, total_on_wire=last.bytes_on_wire, total_original=last.bytes_original, item=None)
        if last.bytes_on_wire >= 0 and final != last:
            await self._tell(final)

    async def _tell(self, progress: Progress) -> None:
        if self._callback is not None:
            told = self._callback(progress)
            if told is not None:
                await told
