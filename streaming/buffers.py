"""Buffers that are used again, so that memory stays constant and its pages are faulted in once."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tensorbus.errors import TransferCancelled

from .limits import FRAME_BYTES


class BufferPool:
    """A fixed number of buffers: taken in a worker thread, given back from anywhere.

    Whoever makes frames faster than they are sent waits here for a buffer: this is where the pace of the
    socket reaches the codecs.

    Args:
        buffers: how many there are; they are made when they are first needed.
        size: of each, in bytes.
        make: makes one of so many bytes.
    """

    def __init__(
        self,
        buffers: int,
        size: int = FRAME_BYTES,
        make: Callable[[int], memoryview] = lambda size: memoryview(bytearray(size)),
    ) -> None:
        self._size = size
        self._make = make
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
                    return self._make(self._size)
                self._changed.wait()
        raise TransferCancelled("the transfer was cancelled")

    def release(self, buffer: memoryview) -> None:
        """Give back a buffer that ``acquire`` returned; nothing may use it any more."""
        with self._changed:
            self._free.append(buffer)
            self._changed.notify()

    def close(self) -> None:
        """Let go of whoever waits for a buffer, or asks for one later: they get TransferCancelled."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class SliceBuffer:
    """One buffer that grows to the largest slice and is then used again; for one thread."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def take(self, nbytes: int) -> memoryview:
        """``nbytes`` of it; what was taken before is no longer valid."""
        if len(self._bytes) < nbytes:
            self._bytes = bytearray(nbytes)
        return memoryview(self._bytes)[:nbytes]
