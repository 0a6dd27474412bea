"""Rates of what only grows, from looks at it now and then. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

SMOOTHING = 2.0
"""Seconds over which a rate is a mean, about."""
STALE = 10.0
"""Seconds without a look after which a rate is begun anew."""


@dataclass(slots=True)
class _Meter:
    at: float
    count: int
    rate: float | None = None

    def look(self, at: float, count: int) -> None:
        passed = at - self.at
        if passed <= 0:
            return
        now = max(0.0, (count - self.count) / passed)
        if self.rate is None or passed > STALE:
            self.rate = now
        else:
            self.rate += (now - self.rate) * (1 - math.exp(-passed / SMOOTHING))
        self.at, self.count = at, count


class Rates:
    """Of several things by name; those that are not looked at any more are forgotten."""

    def __init__(self) -> None:
        self._meters: dict[str, _Meter] = {}

    def look(self, at: float, counts: Mapping[str, int]) -> dict[str, float | None]:
        """How fast each one grows, per second, at the (monotonic) time ``at``; None at the first look."""
        meters: dict[str, _Meter] = {}
        for name, count in counts.items():
            meter = self._meters.get(name)
            if meter is None:
                meter = _Meter(at, count)
            else:
                meter.look(at, count)
            meters[name] = meter
        self._meters = meters
        return {name: meter.rate for name, meter in meters.items()}
