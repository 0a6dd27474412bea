"""SiteEvents: what a site tells whoever started it, one JSON object a line on stdout.

``phase`` begins something and ``phase_done`` ends it with its ``seconds``; ``progress`` is a transfer under
way and ``transferred`` one that is over; ``step``, ``evaluated`` and ``final`` are the training.
``docs/demo.md`` lists the fields.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TextIO

from tensorbus.bus.client import Progress
from tensorbus.bus.client.progress import ProgressCallback

from .memory import PeakMeter

Direction = Literal["down", "up"]
EVERY = 0.25
"""Seconds between two ``progress`` events."""


@dataclass(slots=True)
class Transfer:
    """One message moved; ``moved`` is to be called with its sizes in bytes."""

    bytes_on_wire: int = 0
    bytes_original: int = 0

    def moved(self, on_wire: int | None, original: int | None) -> None:
        """Note the sizes of the message."""
        self.bytes_on_wire, self.bytes_original = on_wire or 0, original or 0


class SiteEvents:
    """Writes events to a stream and flushes each, since someone is watching."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._clock = clock

    def emit(self, event: str, **fields: object) -> None:
        """One event with its fields."""
        self._stream.write(json.dumps({"event": event, **fields}) + "\n")
        self._stream.flush()

    @contextmanager
    def phase(self, name: str, number: int) -> Generator[None]:
        """Time one phase of round ``number``, 0 before the first; an error ends it without a word."""
        began = self.begin(name, number)
        yield
        self.end(name, number, began)

    def begin(self, name: str, number: int) -> float:
        """Say that a phase begins; the time it did, for ``end``."""
        self.emit("phase", phase=name, round=number)
        return self._clock()

    def end(self, name: str, number: int, began: float) -> None:
        """Say that a phase is over."""
        self.emit("phase_done", phase=name, round=number, seconds=self._clock() - began)

    @contextmanager
    def transfer(self, direction: Direction, number: int) -> Generator[Transfer]:
        """Time one transfer of round ``number`` and measure how far the process grows in it."""
        done = Transfer()
        meter = PeakMeter()
        began = self._clock()
        with self.phase("download" if direction == "down" else "upload", number):
            yield done
        self.emit(
            "transferred",
            direction=direction,
            round=number,
            bytes=done.bytes_on_wire,
            original_bytes=done.bytes_original,
            seconds=self._clock() - began,
            peak_growth=meter.growth(),
        )

    def progress(self, direction: Direction) -> ProgressCallback:
        """A callback for the client; it tells of bytes and rate four times a second."""
        began = told = self._clock()
        last = 0

        def tell(progress: Progress) -> None:
            nonlocal began, told, last
            now = self._clock()
            if progress.bytes_on_wire < last:
                began = told = now  # the next transfer has begun
            last = progress.bytes_on_wire
            if now - told < EVERY:
                return
            told = now
            self.emit(
                "progress",
                direction=direction,
                bytes=progress.bytes_on_wire,
                total_bytes=progress.total_on_wire,
                rate=progress.bytes_on_wire / max(now - began, 1e-9),
            )

        return tell
