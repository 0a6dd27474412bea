"""Who writes to an upload: one at a time, and the newest comes first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from tensorbus.errors import Conflict


class Turns:
    """Turns of writers. A client that lost its connection need not wait until the broker notices: its new
    request takes the turn of the old one."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._give_way: Callable[[], None] | None = None
        self._latest = 0

    @property
    def taken(self) -> bool:
        """Whether somebody has the turn, or waits for it."""
        return self._lock.locked()

    def interrupt(self) -> None:
        """Whoever has the turn is asked to give way."""
        if self._give_way is not None:
            self._give_way()

    @asynccontextmanager
    async def turn(self, give_way: Callable[[], None]) -> AsyncGenerator[None]:
        """Have the turn as long as the block runs; the one before is asked to give way and waited for.

        Args:
            give_way: called when another wants the turn: the block should be left soon.

        Raises:
            Conflict: somebody came later and takes it.
        """
        self._latest += 1
        mine = self._latest
        self.interrupt()
        async with self._lock:
            if mine != self._latest:
                raise Conflict("a newer request goes on with this upload")
            self._give_way = give_way
            try:
                yield
            finally:
                self._give_way = None
