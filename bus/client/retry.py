"""Retry: progress, not patience. A call goes on trying while it gets further."""

from __future__ import annotations

import asyncio
import logging
import random
import time

from tensorbus.errors import TensorbusError

log = logging.getLogger("tensorbus.client")

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 3.0
"""Seconds between two attempts; doubled each time, and shortened at random so that sites spread out."""


class Retry:
    """Decides how long a call goes on after the broker went away.

    Args:
        limit: seconds without progress after which the last error is raised.
        what: the call in words, for the log.
    """

    def __init__(self, limit: float, what: str) -> None:
        self._limit = limit
        self._what = what
        self._advanced_at = time.monotonic()
        self._pause = FIRST_PAUSE
        self._tried_again = False

    def advanced(self) -> None:
        """The call got further than ever before: the limit counts from now."""
        self._advanced_at = time.monotonic()
        self._pause = FIRST_PAUSE
        self._tried_again = False

    async def after(self, error: TensorbusError) -> None:
        """Wait a little before the next attempt; there is one at least, as the first may have stalled, or the
        process been stopped, for as long as the limit.

        Raises:
            TensorbusError: ``error``, when there was no progress for the limit.
        """
        remaining = self._limit - (time.monotonic() - self._advanced_at)
        if remaining <= 0 and (self._tried_again or self._limit <= 0):
            raise error
        self._tried_again = True
        remaining = max(remaining, FIRST_PAUSE)
        if self._pause == FIRST_PAUSE:
            log.warning("%s: %s; trying again for %.0f s", self._what, error, remaining)
        pause = min(self._pause * random.uniform(0.5, 1.0), remaining)  # noqa: S311 - no secret
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        await asyncio.sleep(pause)
