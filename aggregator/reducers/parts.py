"""Parts: a slice is folded by a few threads at the same time, each of which adds a part of its elements.

No element is in two parts, and slices and updates come one after the other as before: so each element is
added to in the same order, and the sums are the same bits, however many threads there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace

from tensorbus.streaming.ahead import default_threads
from tensorbus.streaming.decoder import SliceEvent

SMALLEST = 1 << 17
"""Elements of a part at least: fewer are not worth another thread."""


class PartThreads:
    """The threads that help the one which folds; they are started when they are first needed.

    Args:
        threads: in all; None is what clients encode with (``TENSORBUS_THREADS``).
    """

    def __init__(self, threads: int | None = None) -> None:
        self._threads = default_threads() if threads is None else threads
        self._helpers: ThreadPoolExecutor | None = None

    def run(self, event: SliceEvent, fold: Callable[[SliceEvent], None]) -> None:
        """Call ``fold`` for all parts of a slice, and return when it is done with all of them.

        Raises what it raises, of several parts what it does for the first; and as ``SliceCodec.cut``.
        """
        first, *others = self._cut(event)
        if not others:
            fold(first)
            return
        if self._helpers is None:
            self._helpers = ThreadPoolExecutor(self._threads - 1, thread_name_prefix="tensorbus-parts")
        helped: list[Future[None]] = [self._helpers.submit(fold, part) for part in others]
        try:
            fold(first)
        finally:
            wait(helped)
        for part in helped:
            part.result()

    def close(self) -> None:
        """End the threads."""
        if self._helpers is not None:
            self._helpers.shutdown()
            self._helpers = None

    def _cut(self, event: SliceEvent) -> Sequence[SliceEvent]:
        grain, count = event.codec.grain, event.count
        parts = min(self._threads, count // max(SMALLEST, grain)) if grain else 1
        if parts <= 1:
            return [event]
        size = -(-count // parts // grain) * grain
        bounds = [(start, min(start + size, count)) for start in range(0, count, size)]
        return [
            replace(
                event,
                offset=event.offset + start,
                count=stop - start,
                payload=event.codec.cut(event.payload, count, start, stop),
            )
            for start, stop in bounds
        ]
