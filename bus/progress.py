"""Progress of a transfer, and who is told of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a transfer is.

    Attributes:
        bytes_on_wire: bytes of the message body that have left (or arrived and been verified).
        total_on_wire: of the whole body, where it is known beforehand.
        bytes_original: the same values at their original precision, in bytes.
        total_original: of the whole container.
        item: name of the item that is under way; None at the end.
    """

    bytes_on_wire: int
    total_on_wire: int | None
    bytes_original: int
    total_original: int | None
    item: str | None


ProgressCallback = Callable[[Progress], Awaitable[None] | None]
"""Called on the event loop, in order; what it returns is awaited if it can be."""


class ProgressReporter:
    """Tells a callback of progress, and only of progress.

    A transfer that is tried again starts from the front; the callback hears nothing until it is further than
    it ever was.
    """

    def __init__(self, callback: ProgressCallback | None) -> None:
        self._callback = callback
        self._furthest = -1

    async def report(self, progress: Progress) -> bool:
        """Whether this is further than ever before."""
        if progress.bytes_on_wire <= self._furthest:
            return False
        self._furthest = progress.bytes_on_wire
        if self._callback is not None:
            told = self._callback(progress)
            if told is not None:
                await told
        return True
