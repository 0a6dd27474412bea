"""Retry: progress, not patience. A call goes on trying while it gets further."""

from __future__ import annotations

import asyncio
import logging
import random
import time

from tensorbus.errors import BrokerUnavailable, TensorbusError, TooManyRequests, TransferStalled

from .addresses import Addresses

log = logging.getLogger("tensorbus.client")

TRANSIENT = (BrokerUnavailable, TransferStalled)
"""What is worth another attempt."""

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 3.0
"""Seconds between two attempts; doubled each time, and shortened at random so that sites spread out."""


class Retry:
    """Decides how long a call goes on after the broker went away.

    Args:
        limit: seconds without progress after which the last error is raised.
        what: the call in words, for the log.
        addresses: of brokers. While there is one that was not asked yet, hardly a pause is made.
    """

    def __init__(self, limit: float, what: str, addresses: Addresses) -> None:
        self._limit = limit
        self._what = what
        self._addresses = addresses
        self._advanced_at = time.monotonic()
        self._pause = FIRST_PAUSE
        self._failures = 0

    def advanced(self) -> None:
        """The call got further than ever before: the limit counts from now."""
        self._advanced_at = time.monotonic()
        self._pause = FIRST_PAUSE
        self._failures = 0

    async def after(self, error: TensorbusError) -> None:
        """Wait a little before the next attempt; there is one at least, and one at each address, as the first
        may have stalled, or the process been stopped, for as long as the limit.

        Raises:
            TensorbusError: ``error``, when there was no progress for the limit.
        """
        self._failures += 1
        remaining = self._limit - (time.monotonic() - self._advanced_at)
        if remaining <= 0 and (self._limit <= 0 or self._failures >= max(2, len(self._addresses))):
            raise self._addresses.explained(error)
        remaining = max(remaining, FIRST_PAUSE)
        if self._failures == 1:
            log.warning("%s: %s; trying again for %.0f s", self._what, error, remaining)
        if isinstance(error, TRANSIENT) and not isinstance(error, TooManyRequests) and self._is_another_next:
            await asyncio.sleep(random.uniform(0, FIRST_PAUSE))  # noqa: S311 - no secret
            return
        pause = min(self._pause * random.uniform(0.5, 1.0), remaining)  # noqa: S311 - no secret
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        await asyncio.sleep(pause)

    @property
    def _is_another_next(self) -> bool:
        """Whether the round of all addresses is not over."""
        return self._failures % len(self._addresses) != 0
