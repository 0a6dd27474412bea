"""Board: looks for all watchers together, and not at all while there are none.

Strategy. The first watcher starts a task, the last one to leave ends it. It looks when something has moved
since it looked last, at most every half a second; and every two seconds anyway, since some changes (a message
that was deleted) move none of the numbers. Where a look takes long, because there are thousands of consumers,
it rests nine times as long, so that watching never takes more than a tenth of the store's time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Generator
from contextlib import contextmanager
from time import monotonic

from tensorbus.errors import TensorbusError

from .snapshot import Looker, Snapshot

log = logging.getLogger("tensorbus.server")

EVERY = 0.5
"""Seconds between two looks, at least."""
ANYWAY = 2.0
"""Seconds after which it is looked though nothing seems to have moved."""
_SHARE = 9
"""A look is followed by a rest of so many times its duration."""


class Board:
    """What one server's watchers look at."""

    def __init__(self, looker: Looker) -> None:
        self._looker = looker
        self._looking = asyncio.Lock()
        self._snapshot: Snapshot | None = None
        self._looked = 0.0
        self._activity: tuple[int, ...] = ()
        self._watchers = 0
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    @property
    def every(self) -> float:
        """Seconds between two looks now."""
        return EVERY if self._snapshot is None else max(EVERY, _SHARE * self._snapshot.took)

    async def look(self) -> Snapshot:
        """What is going on: found now, or so short a time ago that nobody would look again.

        Raises StorageError and the like.
        """
        async with self._looking:
            snapshot = self._snapshot
            if snapshot is not None and monotonic() - self._looked < self.every:
                return snapshot
            self._activity = self._looker.activity
            snapshot = self._snapshot = await self._looker.look()
            self._looked = monotonic()
        self._changed.set()
        self._changed = asyncio.Event()
        return snapshot

    async def after(self, version: int) -> Snapshot:
        """The first look behind that of ``version``; only while the caller is a watcher."""
        while self._snapshot is None or self._snapshot.version <= version:
            await self._changed.wait()
        return self._snapshot

    @contextmanager
    def watching(self) -> Generator[None]:
        """There is one watcher more within the block."""
        self._watchers += 1
        if self._task is None:
            self._task = asyncio.create_task(self._watch(), name="tensorbus-status")
        try:
            yield
        finally:
            self._watchers -= 1
            if not self._watchers:
                self._task.cancel()
                self._task = None
                self._snapshot = None
                self._looker.forget()

    async def _watch(self) -> None:
        while True:
            wait = self._looked + self.every - monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            if self._looker.activity == self._activity and monotonic() - self._looked < ANYWAY:
                await asyncio.sleep(EVERY)
                continue
            try:
                await self.look()
            except TensorbusError as error:
                log.warning("the broker's status cannot be told: %s", error)
                await asyncio.sleep(ANYWAY)
            except Exception:
                # Watchers go on waiting, and the next look may do better.
                log.exception("the broker's status cannot be told")
                await asyncio.sleep(ANYWAY)
