"""Between a worker thread and the event loop: a queue bounded by bytes, and a pool of buffers.

Codecs and files work in a worker thread, sockets belong to the event loop. Either side may be the faster one;
what waits between them is bounded, so the slower one sets the pace (backpressure) and memory stays constant.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sized
from typing import Generic, TypeVar

from tensorbus.errors import TransferCancelled

from .limits import FRAME_BYTES

T = TypeVar("T")


def _length(value: object) -> int:
    return len(value) if isinstance(value, Sized) else 1


class Channel(Generic[T]):
    """A queue with one end in a worker thread (``put``, iteration) and one in the event loop (``send``, async
    iteration); values may go either way.

    It is made in the event loop. A value is let in while the values waiting are smaller than the capacity, so
    a value larger than the capacity passes too.

    Args:
        capacity: bytes that may wait.
        size: of a value, in bytes; ``len`` if not given.
    """

    def __init__(self, capacity: int, size: Callable[[T], int] = _length) -> None:
        self._capacity = capacity
        self._size = size
        self._values: deque[T] = deque()
        self._waiting = 0
        self._finished = False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._loop = asyncio.get_running_loop()
        self._loop_changed = asyncio.Event()

    # --- the worker's end: these block ---------------------------------------------------------------

    def put(self, value: T) -> None:
        """Add a value, as soon as there is room; from the worker thread.

        Raises:
            TransferCancelled: the channel was closed.
        """
        with self._changed:
            while not self._offer(value):
                self._changed.wait()

    def __iter__(self) -> Iterator[T]:
        """The values as they come, until ``finish``; in the worker thread.

        Raises:
            TransferCancelled: the channel was closed.
            what ``fail`` was given.
        """
        while True:
            with self._changed:
                while not (taken := self._take()):
                    if self._finished:
                        return
                    self._changed.wait()
            yield taken[0]

    # --- the loop's end: these wait ------------------------------------------------------------------

    async def send(self, value: T) -> None:
        """Add a value, as soon as there is room; from the event loop. Raises as ``put``."""
        while True:
            with self._changed:
                if self._offer(value):
                    return
                self._loop_changed.clear()
            await self._loop_changed.wait()

    async def __aiter__(self) -> AsyncIterator[T]:
        """The values as they come, until ``finish``; in the event loop. Raises as iteration does."""
        while True:
            with self._changed:
                taken = self._take()
                if not taken and self._finished:
                    return
                self._loop_changed.clear()
            if taken:
                yield taken[0]
            else:
                await self._loop_changed.wait()

    # --- either end ----------------------------------------------------------------------------------

    def finish(self) -> None:
        """There will be no more values."""
        with self._changed:
            self._finished = True
            self._notify()

    def fail(self, failure: BaseException) -> None:
        """Make the other end raise ``failure`` now; what waits is dropped. The first failure counts."""
        with self._changed:
            if self._failure is None:
                self._failure = failure
                self._values.clear()
            self._notify()

    def close(self) -> None:
        """Let go of both ends: whoever waits or comes later gets TransferCancelled."""
        self.fail(TransferCancelled("the transfer was cancelled"))

    # --- under the lock ------------------------------------------------------------------------------

    def _offer(self, value: T) -> bool:
        if self._failure is not None:
            raise self._failure
        if self._waiting and self._waiting >= self._capacity:
            return False
        self._values.append(value)
        self._waiting += self._size(value)
        self._notify()
        return True

    def _take(self) -> tuple[T] | None:
        if self._failure is not None:
            raise self._failure
        if not self._values:
            return None
        value = self._values.popleft()
        self._waiting -= self._size(value)
        self._notify()
        return (value,)

    def _notify(self) -> None:
        self._changed.notify_all()
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop_changed.set)


class BufferPool:
    """A fixed number of buffers: taken in a worker thread, given back from anywhere.

    Args:
        buffers: how many there are; they are made when they are first needed.
        size: of each, in bytes.
    """

    def __init__(self, buffers: int, size: int = FRAME_BYTES) -> None:
        self._size = size
        self._unmade = buffers
        self._free: list[memoryview] = []
        self._closed = False
        self._changed = threading.Condition()

    def acquire(self) -> memoryview:
        """A buffer, as soon as one is free; blocks, so not for the event loop.

        Raises:
            TransferCancelled: the pool was closed.
        """
        with self._changed:
            while not self._closed:
                if self._free:
                    return self._free.pop()
                if self._unmade:
                    self._unmade -= 1
                    return memoryview(bytearray(self._size))
                self._changed.wait()
        raise TransferCancelled("the transfer was cancelled")

    def release(self, buffer: memoryview) -> None:
        """Give back a buffer that ``acquire`` returned; nothing may use it any more."""
        with self._changed:
            self._free.append(buffer)
            self._changed.notify()

    def close(self) -> None:
        """Whoever waits for a buffer, or asks for one later, gets TransferCancelled."""
        with self._changed:
            self._closed = True
            self._free.clear()
            self._changed.notify_all()
