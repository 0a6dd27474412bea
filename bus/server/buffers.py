"""A fixed number of buffers that all uploads share."""

from __future__ import annotations

import asyncio


class Buffers:
    """At most ``count`` buffers of ``size`` bytes, made when they are first needed, handed out in turn."""

    def __init__(self, count: int = 16, size: int = 1 << 20) -> None:
        self._size = size
        self._free: list[bytearray] = []
        self._turns = asyncio.Semaphore(count)

    async def acquire(self) -> bytearray:
        """A buffer, with whatever it held last; waits while all are in use."""
        await self._turns.acquire()
        return self._free.pop() if self._free else bytearray(self._size)

    def release(self, buffer: bytearray) -> None:
        """Give a buffer back."""
        self._free.append(buffer)
        self._turns.release()

    def discard(self) -> None:
        """Tell that a buffer does not come back; another may be made in its place."""
        self._turns.release()
