"""SliceThread: one thread in which a reducer handles the slices of updates, one call at a time.

Strategy. The next slice is received while the event loop waits for the thread, and not before: a slice is
valid until the next is asked for, so there is never more than one. One thread, so that the reducer sees one
call at a time, and the buffers of the codecs, which each thread has its own of, exist once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from typing import TypeVar

from tensorbus.streaming.decoder import SliceEvent

from .base import Told

T = TypeVar("T")


class SliceThread:
    """Runs what blocks."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tensorbus-reducer")

    async def call(self, function: Callable[[], T]) -> T:
        """The result of ``function``, in the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def read(
        self,
        slices: AsyncGenerator[SliceEvent],
        take: Callable[[SliceEvent], object],
        told: Told | None = None,
    ) -> None:
        """Give each slice to ``take``, in the thread; ``told`` hears how many bytes of payload came so far.

        Raises what reading raises (see `Update`), and what ``take`` does.
        """
        taken = 0
        async with aclosing(slices):
            async for event in slices:
                await self.call(partial(take, event))
                taken += len(event.payload)
                if told is not None:
                    told(taken)

    async def aclose(self) -> None:
        """End the thread, when the call that runs is done."""
        await asyncio.to_thread(self._thread.shutdown)
