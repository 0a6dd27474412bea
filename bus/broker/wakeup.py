"""A word to all who wait that something has changed."""

from __future__ import annotations

import asyncio


class Wakeup:
    """Counts changes of something and wakes those who wait for the next one; belongs to one event loop.

    Look at ``version``, then at the thing, then wait for a version other than the one seen; none is missed.
    """

    def __init__(self) -> None:
        self.version = 0
        self._waiting: set[asyncio.Future[None]] = set()

    @property
    def awaited(self) -> bool:
        """Whether somebody waits; any thread may ask."""
        return bool(self._waiting)

    def notify(self) -> None:
        """The thing has changed."""
        self.version += 1
        waiting, self._waiting = self._waiting, set()
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, seen: int, at_most: float | None = None) -> None:
        """Return when the version is not ``seen`` (any more), or after ``at_most`` seconds."""
        if self.version != seen:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            await asyncio.wait([waiter], timeout=at_most)
        finally:
            self._waiting.discard(waiter)
