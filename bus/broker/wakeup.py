"""A word to all who wait that something has changed."""

from __future__ import annotations

import asyncio


class Wakeup:
    """Counts changes of something and wakes those who wait for the next one; belongs to one event loop.

    Look at ``version``, then at the thing, then wait for a version other than the one seen; none is missed.
    """

    def __init__(self) -> None:
        self.version = 0
        # In the order in which they came: who has waited longest is woken first.
        self._waiting: dict[asyncio.Future[None], None] = {}

    @property
    def awaited(self) -> bool:
        """Whether somebody waits; any thread may ask."""
        return bool(self._waiting)

    def notify(self) -> None:
        """The thing has changed."""
        self.version += 1
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting:
            _wake(waiter)

    async def wait(self, seen: int, at_most: float | None = None) -> None:
        """Return when the version is not ``seen`` (any more), or after ``at_most`` seconds."""
        if self.version != seen:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = None
        timer = None if at_most is None else waiter.get_loop().call_later(at_most, _wake, waiter)
        try:
            await waiter
        finally:
            if timer is not None:
                timer.cancel()
            self._waiting.pop(waiter, None)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
