"""Threads for calls that block, and tasks that are carried through whatever happens to their caller."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger("tensorbus.broker")


class Workers:
    """Two pools, so that calls that wait for the disk do not hold up those that only move memory.

    Calls run in their caller's context, so that what they log names its request.
    """

    def __init__(self, threads: int) -> None:
        self._moving = ThreadPoolExecutor(threads, thread_name_prefix="tensorbus-io")
        self._syncing = ThreadPoolExecutor(threads, thread_name_prefix="tensorbus-sync")
        self._tasks: set[asyncio.Task[object]] = set()

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of a short blocking call."""
        return await asyncio.wrap_future(self._moving.submit(copy_context().run, call, *args, **kwargs))

    async def sync(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of a call that waits for the disk."""
        return await asyncio.wrap_future(self._syncing.submit(copy_context().run, call, *args, **kwargs))

    def start(self, work: Coroutine[object, object, T]) -> asyncio.Task[T]:
        """Run ``work`` as a task of its own; it is kept until it ends, and waited for by ``close``."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def finish(self, work: Coroutine[object, object, T]) -> T:
        """The result of ``work``, which goes on to its end even if the caller is cancelled."""
        return await asyncio.shield(self.start(work))

    async def close(self) -> None:
        """Wait for all tasks and end the threads."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.to_thread(self._moving.shutdown)
        await asyncio.to_thread(self._syncing.shutdown)

    def _ended(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None:
            # Whoever awaits the task has it too; this is for those who were cancelled meanwhile.
            _log.debug("a background task failed", exc_info=problem)
