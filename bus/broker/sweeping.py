"""What a broker does again and again: things grow old, and space is given back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from tensorbus.errors import TensorbusError

_log = logging.getLogger("tensorbus.broker")

Duty = Callable[[], Awaitable[object]]
"""Does what is due by the broker's clock; to do it twice changes nothing more."""


class Sweeping:
    """Runs the duties one after another, at intervals and when it is asked to.

    Args:
        interval: seconds between two rounds; 0 leaves them to the callers of ``sweep``.
        duties: in their order.
    """

    def __init__(self, interval: float, duties: Sequence[Duty]) -> None:
        self._interval = interval
        self._duties = tuple(duties)
        self._busy = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """The first round, for what became due while nothing ran; with an interval, nobody waits for it."""
        if self._interval > 0:
            self._task = asyncio.create_task(self._run())
        else:
            await self.sweep()

    async def stop(self) -> None:
        """No more rounds; what one has not done yet, the first one of the next process does."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def sweep(self) -> None:
        """One round. What fails is logged, and does not keep the other duties from being done."""
        async with self._busy:
            for duty in self._duties:
                try:
                    await duty()
                except (TensorbusError, OSError) as problem:
                    _log.warning("sweep: %s", problem)
                except Exception:
                    # A fault of one duty must not end all of them for as long as the broker runs.
                    _log.exception("sweep: a duty failed unexpectedly")

    async def _run(self) -> None:
        while True:
            await self.sweep()
            await asyncio.sleep(self._interval)
