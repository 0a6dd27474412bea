"""The few threads that move bytes between sockets and files.

Strategy. The event loop decides, a thread moves: it goes on for as long as bytes flow, window after window,
without a word to the loop. A peer that has nothing to give or takes nothing is waited for a moment, and then
left to the loop, which can wait for thousands. As soon as there is more to move than there are threads,
nobody is waited for at all, and each gets its turn in slices.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

THREADS = 8
PATIENCE = 20
"""Milliseconds for which a thread waits for a peer, when there are threads to spare."""
SLICE = 0.1
"""Seconds that one transfer goes on when others wait for a thread."""
BUFFER = 1 << 20
"""Bytes; of each thread that has received something."""


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.view = memoryview(bytearray(BUFFER))


_BUFFERS = _Buffers()


class Turn:
    """One stay of a transfer in a thread."""

    def __init__(self, movers: Movers) -> None:
        self._movers = movers
        self._stopped = False
        self._ends = 0.0

    def begin(self) -> None:
        """A thread has taken it up."""
        self._ends = time.monotonic() + SLICE

    def stop(self) -> None:
        """Nobody wants it any more; from any thread."""
        self._stopped = True

    @property
    def over(self) -> bool:
        """Whether the thread is wanted back."""
        return self._stopped or (self._movers.crowded and time.monotonic() > self._ends)

    @property
    def buffer(self) -> memoryview:
        """The thread's own, free until the step returns."""
        return _BUFFERS.view

    @property
    def patience(self) -> int:
        """Milliseconds for which the peer may be waited for."""
        return 0 if self._stopped or self._movers.crowded else PATIENCE


class Movers:
    """A pool of threads for steps that move bytes."""

    def __init__(self, threads: int = THREADS) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tensorbus-move")
        self._lock = threading.Lock()
        self._steps = 0

    @property
    def crowded(self) -> bool:
        """Whether transfers wait for a thread."""
        return self._steps > self._threads

    async def run(self, step: Callable[[Turn], T]) -> T:
        """The result of ``step`` in a thread; it ends soon after its turn is over.

        A caller that is cancelled still waits for the thread, which is short: so descriptors and buffers are
        free again when this returns, however it returns.
        """
        turn = Turn(self)
        self._count(1)
        work = self._pool.submit(self._run, step, turn)
        waiter = asyncio.wrap_future(work)
        try:
            return await asyncio.shield(waiter)
        except asyncio.CancelledError:
            turn.stop()
            if work.cancel():
                self._count(-1)
            while not work.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([waiter])
            raise

    def _run(self, step: Callable[[Turn], T], turn: Turn) -> T:
        turn.begin()
        try:
            return step(turn)
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        with self._lock:
            self._steps += change


MOVERS = Movers()
"""One pool for all servers of a process: there are only so many processors."""
