"""What a broker counts and times, for whoever watches it. Cheap enough to do it for every message."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock

from .savings import Savings

FAST = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Bounds in seconds for what should take milliseconds."""
SLOW = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 60.0, 300.0, 3600.0)
"""Bounds in seconds for what depends on sizes and on peers."""


class Histogram:
    """How often which durations were seen, from any thread.

    Attributes:
        bounds: the upper ends of the buckets, in seconds.
    """

    __slots__ = ("_counts", "_lock", "_total", "bounds")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self._counts = [0] * (len(self.bounds) + 1)
        self._total = 0.0
        self._lock = Lock()

    def observe(self, seconds: float) -> None:
        """One more. A duration below zero (a clock was set back) counts as zero."""
        seconds = max(seconds, 0.0)
        bucket = bisect_left(self.bounds, seconds)
        with self._lock:
            self._counts[bucket] += 1
            self._total += seconds

    def snapshot(self) -> tuple[list[int], float]:
        """How many in each bucket, the last one being those beyond all bounds; and the sum in seconds."""
        with self._lock:
            return self._counts.copy(), self._total


@dataclass
class Measures:
    """Of one broker, since it started.

    Attributes:
        fsync: how long each flush to stable storage took: of files, of folders, of the database's rows.
        seal: from the begin of a message to its acknowledgement.
        handover: from the seal of a message to its first hand-over, for each consumer.
        frames_in: frames of sealed messages.
        duplicates: publishes that were answered with an earlier receipt.
        redelivered: hand-overs that were not the first of their message to their consumer.
        dead: messages that became dead letters.
        damaged: messages whose frames were found damaged.
        savings: of the messages that came in, by codec.
    """

    fsync: dict[str, Histogram] = field(
        default_factory=lambda: {kind: Histogram(FAST) for kind in ("file", "folder", "rows")}
    )
    seal: Histogram = field(default_factory=lambda: Histogram(SLOW))
    handover: Histogram = field(default_factory=lambda: Histogram(SLOW))
    frames_in: int = 0
    duplicates: int = 0
    redelivered: int = 0
    dead: int = 0
    damaged: int = 0
    savings: Savings = field(default_factory=Savings)

    def synced(self, kind: str, seconds: float) -> None:
        """A flush of this kind took so long."""
        self.fsync[kind].observe(seconds)
