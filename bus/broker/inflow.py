"""Brings the bytes of a message into its intake and on to the disk, without holding up the event loop.

Strategy. ``write`` only puts chunks into a batch. While there is a batch, one worker thread at a time takes
all of it, checks the frames in it, and keeps it; meanwhile the next batch gathers. So a slow upload is
verified and visible at once, a fast one moves in large steps, and either holds two batches at most: when the
second is full, ``write`` waits. When all uploads together gather too much, each waits for its own bytes, so
that the broker's memory does not grow with their number.

A thread that has the bytes already (it received them) hands them over with ``take`` instead: they are checked
and kept there and then, and the event loop only hears of it. What a small message consists of is checked on
the event loop, which takes less time than to ask a thread to do it.

While the bytes arrive, the file is synced in steps by another thread, one step at a time, so that the
acknowledgement in the end waits for the last few megabytes only.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tensorbus.bus.stores.base import Part

from .intake import Intake
from .lent import LentIntake
from .settings import BrokerSettings
from .wakeup import Wakeup
from .workers import Workers

_CHUNK_OVERHEAD = 100
"""Bytes that a chunk costs beside its content, so that a batch of tiny chunks stays small as well."""
_AT_ONCE = 32 << 10
"""Bytes; a chunk of no more is checked on the event loop, if it is kept in memory."""


class Digest(Protocol):
    """A running checksum, as those of hashlib."""

    def update(self, data: Part, /) -> object:
        """More bytes."""
        ...

    def digest(self) -> bytes:
        """Of all of them."""
        ...


@dataclass(slots=True)
class Running:
    """What all uploads have in common.

    Attributes:
        gathered: bytes that wait for a thread.
        uploads: how many have a writer.
    """

    gathered: int = 0
    uploads: int = 0


class Inflow:
    """The way into one intake, for one writer at a time; belongs to the event loop, but for ``take``.

    Args:
        shown: called on the event loop when more has been checked and kept.
        failed: called there with what went wrong, once; after it nothing more is taken.
        taken: called in a thread that takes, when it has checked and kept more; says whether the event loop
            has to hear of it now, and not only when ``pace`` is awaited.
        digest: if given, the bytes run through it and are held by the intake until they are released.
    """

    def __init__(
        self,
        intake: Intake | LentIntake,
        settings: BrokerSettings,
        workers: Workers,
        running: Running,
        *,
        shown: Callable[[], None],
        taken: Callable[[], bool],
        failed: Callable[[Exception], None],
    ) -> None:
        self.intake = intake
        self.digest: Digest | None = None
        self.received = 0
        self.failure: Exception | None = None
        self._settings = settings
        self._workers = workers
        self._running = running
        self._shown = shown
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._taken = taken
        self._taking = threading.Lock()
        self._taken_bytes = 0
        self._heard_bytes = 0
        self._kept = 0
        self._unsynced = 0
        self._batch: list[Part] = []
        self._batch_cost = 0
        self._progress = Wakeup()
        self._drain_task: asyncio.Task[None] | None = None
        self._sync_task: asyncio.Task[None] | None = None

    # --- bytes come ----------------------------------------------------------------------------------

    async def write(self, chunk: Part) -> None:
        """Take the next bytes; waits while the store is behind. See `Upload.write`."""
        self.check()
        if not chunk:
            return
        self.received += len(chunk)
        if self._takes_at_once(len(chunk)):
            self._put_at_once(chunk)
            return
        end = self.received
        self._running.gathered += len(chunk)
        self._batch.append(chunk)
        self._batch_cost += len(chunk) + _CHUNK_OVERHEAD
        if self._drain_task is None or self._drain_task.done():
            self._drain_task = self._workers.start(self._drain())
        if isinstance(chunk, bytes) and self._running.gathered <= self._settings.gather_bytes:
            await self._until(lambda: self._batch_cost < self._settings.batch_bytes)
        else:
            await self._until(lambda: self._kept >= end)
        self.check()

    def take(self, view: memoryview) -> None:
        """Check and keep the next bytes in the calling thread; the event loop hears of it later.

        For one thread at a time, and not while ``write`` is used. After some calls, ``pace`` is awaited.
        Raises as ``write``.
        """
        with self._taking:
            self.check()
            try:
                self._put([view])
            except Exception as problem:
                self._loop.call_soon_threadsafe(self.fail, problem)
                raise
            self._taken_bytes += len(view)
            tell = self._taken()
        if tell:
            self._loop.call_soon_threadsafe(self._catch_up)

    async def pace(self) -> None:
        """Wait while the disk is behind. Raises what went wrong with it."""
        self._catch_up()
        self.check()
        if self._unsynced >= self._settings.sync_bytes:
            await self._synced()
            self._unsynced = 0
            self._sync_task = self._workers.start(self._workers.sync(self.intake.sync))

    # --- and rest ------------------------------------------------------------------------------------

    async def flush(self) -> None:
        """Wait until all that was written is kept. Raises what went wrong."""
        await self._until(lambda: self._kept >= self.received)
        if self._drain_task is not None:
            await self._drain_task
        self.check()

    async def sync(self) -> None:
        """Wait until all that is kept is on stable storage. Raises what went wrong."""
        await self._synced()
        self._sync_task = self._workers.start(self._workers.sync(self.intake.sync))
        await self._synced()
        self.check()

    async def quiet(self) -> None:
        """Wait until no thread is at work on the intake any more; all that was written is kept, or failed."""
        while tasks := [task for task in (self._drain_task, self._sync_task) if task and not task.done()]:
            await asyncio.wait(tasks)
        if self._taking.locked():
            # Whoever takes will be refused next time, and is waited for this time.
            await self._workers.run(_pass_through, self._taking)

    def fail(self, problem: Exception) -> None:
        """Nothing more is taken: whoever writes gets ``problem``, if it is the first one."""
        if self.failure is None:
            self.failure = problem
            self._running.gathered -= sum(map(len, self._batch))
            self._batch = []
            self._progress.notify()
            self._failed(problem)

    def check(self) -> None:
        """Raise what went wrong."""
        if self.failure is not None:
            raise self.failure

    # --- inside --------------------------------------------------------------------------------------

    def _takes_at_once(self, size: int) -> bool:
        busy = self._drain_task is not None and not self._drain_task.done()
        return size <= _AT_ONCE and not busy and self.intake.fits(size)

    def _put_at_once(self, chunk: Part) -> None:
        try:
            self._put([chunk])
        except Exception as problem:
            self.fail(problem)
            raise
        self._kept += len(chunk)
        self._shown()

    async def _drain(self) -> None:
        try:
            while self._batch and self.failure is None:
                batch, self._batch, self._batch_cost = self._batch, [], 0
                self._progress.notify()
                size = sum(map(len, batch))
                try:
                    await self._workers.run(self._put, batch)
                finally:
                    self._running.gathered -= size
                self._count(size)
                if self.failure is None:
                    self._shown()
                    await self.pace()
                self._progress.notify()
        except Exception as problem:  # whatever it is, it belongs to the publisher
            self.fail(problem)

    def _put(self, parts: Sequence[Part]) -> None:
        """In whatever thread the bytes are; nobody else touches the intake meanwhile, but to sync."""
        if self.digest is None:
            self.intake.take(parts)
            return
        for part in parts:
            self.digest.update(part)
        self.intake.hold(parts)

    def _catch_up(self) -> None:
        """Hear of what was taken in a thread."""
        size = self._taken_bytes - self._heard_bytes
        if size:
            self._heard_bytes += size
            self.received += size
            self._count(size)
            if self.failure is None:
                self._shown()
            self._progress.notify()

    def _count(self, size: int) -> None:
        self._kept += size
        self._unsynced += size

    async def _synced(self) -> None:
        if self._sync_task is not None:
            await self._sync_task
            self._sync_task = None

    async def _until(self, condition: Callable[[], bool]) -> None:
        while self.failure is None and not condition():
            await self._progress.wait(self._progress.version)


def _pass_through(lock: threading.Lock) -> None:
    with lock:
        pass
