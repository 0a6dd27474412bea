"""What every handler of the server needs, and the figures that the server counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aiohttp import web

from tensorbus.bus.broker import Broker

from .buffers import Buffers
from .settings import ServerSettings

T = TypeVar("T")


@dataclass
class Counters:
    """Counted by the server itself; the broker counts messages and consumers."""

    requests: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    open_uploads: int = 0
    open_downloads: int = 0

    def sent(self, count: int) -> None:
        """``count`` bytes of frames went out."""
        self.bytes_out += count

    @contextmanager
    def upload(self) -> Generator[None]:
        """An upload, for as long as it is open."""
        self.open_uploads += 1
        try:
            yield
        finally:
            self.open_uploads -= 1

    @contextmanager
    def download(self) -> Generator[None]:
        """A download, for as long as it is open."""
        self.open_downloads += 1
        try:
            yield
        finally:
            self.open_downloads -= 1


@dataclass
class Waits:
    """Requests that wait for something to happen: ended, with nothing, when the server stops."""

    _tasks: set[asyncio.Task[Any]] = field(default_factory=set[asyncio.Task[Any]])
    _stopping: bool = False

    async def run(self, work: Coroutine[Any, Any, T], unwanted: Callable[[T], object]) -> T | None:
        """The result of ``work``, or None if the server stops before.

        If the caller is cancelled just when a result came, ``unwanted`` gets it.
        """
        if self._stopping:
            work.close()
            return None
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            task.cancel()
            task.add_done_callback(lambda done: _hand_over(done, unwanted))
            raise
        return None if task.cancelled() else task.result()

    def stop(self) -> None:
        """End all waits, present and future."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()


def _hand_over(done: asyncio.Task[T], taker: Callable[[T], object]) -> None:
    if not done.cancelled() and done.exception() is None:
        taker(done.result())


@dataclass
class Finishing:
    """Work that is carried to its end even when the request that began it is cancelled."""

    _tasks: set[asyncio.Task[Any]] = field(default_factory=set[asyncio.Task[Any]])

    async def run(self, work: Coroutine[Any, Any, T], unwanted: Callable[[T], object] | None = None) -> T:
        """The result of ``work``; if the caller is cancelled, the work goes on without it.

        ``unwanted`` then gets the result, to give back what it holds.
        """
        task = self.start(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if unwanted is not None:
                task.add_done_callback(lambda done: _hand_over(done, unwanted))
            raise

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin ``work`` without waiting for it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def wait(self) -> None:
        """Until all of it is done."""
        await asyncio.gather(*self._tasks, return_exceptions=True)


@dataclass
class Context:
    """One server's parts."""

    broker: Broker
    settings: ServerSettings
    counters: Counters = field(default_factory=Counters)
    waits: Waits = field(default_factory=Waits)
    finishing: Finishing = field(default_factory=Finishing)
    buffers: Buffers = field(default_factory=Buffers)


CONTEXT = web.AppKey("context", Context)


def context(request: web.Request) -> Context:
    """The context of the server that got ``request``."""
    return request.app[CONTEXT]
