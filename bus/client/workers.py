"""Workers: the threads that one client's transfers compute in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


class Workers:
    """A pool, made when it is first used."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    async def run(self, function: Callable[[], T]) -> T:
        """Run ``function`` in a thread; see `outlast`."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(thread_name_prefix="tensorbus-client")
        return await outlast(asyncio.get_running_loop().run_in_executor(self._pool, function))

    def close(self) -> None:
        """End the threads, each when it has done what it does."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False)


async def outlast(future: asyncio.Future[T]) -> T:
    """What ``future`` results in. A caller that is cancelled still waits until it is done."""
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # seen: the cancellation is what the caller hears of
        raise
