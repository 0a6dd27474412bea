"""What every handler of the server needs."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aiohttp import web

from tensorbus import __version__
from tensorbus.bus.access import TokenFile
from tensorbus.bus.broker import Broker
from tensorbus.bus.broker.pushing import Push
from tensorbus.bus.peers import Doing, Peers

from .counters import Counters
from .downloads import Downloads
from .metrics import Metrics
from .settings import ServerSettings
from .status.board import Board
from .status.moving import of_download, of_upload
from .status.snapshot import Looker

T = TypeVar("T")


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
    tokens: TokenFile | None = None
    counters: Counters = field(default_factory=Counters)
    downloads: Downloads = field(default_factory=Downloads)
    started: float = field(default_factory=time.time)
    """Seconds since the epoch."""
    name: str = field(default_factory=lambda: secrets.token_hex(4))
    """Of this run of the server, among those of other brokers."""
    waits: Waits = field(default_factory=Waits)
    finishing: Finishing = field(default_factory=Finishing)
    peers: Peers | None = None
    """The brokers of a store that is shared."""
    metrics: Metrics = field(init=False)
    board: Board = field(init=False)
    beginning: Counter[str] = field(default_factory=Counter[str])
    """Uploads that are about to be begun, by token; only of tokens with a limit."""
    batched: int = 0
    """Bytes of batches that have come in and are in memory."""
    streams: dict[str, Push] = field(default_factory=dict[str, Push])
    """Streams of deliveries by the ids that their readers know."""
    draining: bool = False
    """The server is stopping: it finishes what is under way and begins nothing new."""

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.broker, self.counters, self.peers)
        looker = Looker(self.broker, self.counters, self.downloads, self.tokens, self.peers)
        self.board = Board(looker)
        if self.peers is not None:
            self.peers.describe_by(self._doing)

    def _doing(self) -> Doing:
        counted = self.counters
        moving = [of_upload(each) for each in self.broker.transfers() if not each.idle]
        moving += [of_download(each, self.name) for each in self.downloads.current.values()]
        return Doing(
            version=__version__,
            started=self.started,
            uploads=counted.open_uploads + counted.open_resumable,
            downloads=counted.open_downloads,
            received=counted.bytes_in,
            sent=counted.bytes_out,
            moving=moving,
        )


CONTEXT = web.AppKey("context", Context)


def context(request: web.Request) -> Context:
    """The context of the server that got ``request``."""
    return request.app[CONTEXT]
