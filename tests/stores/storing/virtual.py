"""Time that goes on when a test says so."""

from __future__ import annotations

BEGIN = 1_750_000_000.0
"""When virtual time begins, in seconds since the epoch."""


class VirtualClock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def wall(self) -> float:
        """Seconds since the epoch."""
        return BEGIN + self.now

    def monotonic(self) -> float:
        """Seconds."""
        return self.now
