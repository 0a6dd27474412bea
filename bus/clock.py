"""The two clocks of a broker, so that tests can run on virtual time."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time, in seconds."""

    def wall(self) -> float:
        """Since the epoch: what is stored and shown. May jump."""
        ...

    def monotonic(self) -> float:
        """Since some moment: what intervals are measured with. Never goes back."""
        ...


class SystemClock:
    """The machine's clocks."""

    def wall(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds of the monotonic clock, which asyncio's event loops use as well."""
        return time.monotonic()
