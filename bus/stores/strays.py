"""Pieces that nobody knows of: a broker that was taken for dead may write after its run was cleared.

Strategy. Names of runs are listed a page at a time, and compared with the rows. A run that is being written
is in the rows soon after its first piece, so only what has been there for a while is nobody's. It is looked
for when a broker takes the lead, and once a day: a broker that stood still may go on at any time, and writes
a few pieces before it notices.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from sqlite3 import Connection

from .runs import Pieces, Runs

OLD = 3600.0
"""Seconds since anything of a run was written, after which it should be in the rows."""
_EVERY = 86400.0

_log = logging.getLogger("tensorbus.store")

Read = Callable[[Callable[[Connection], Collection[str]]], Awaitable[Collection[str]]]


class Strays:
    """Looks for them.

    Args:
        read: asks the rows, as they are when all that is in the log now is in them.
        others: of these runs, those that something else than the rows needs.
    """

    def __init__(
        self, runs: Runs, pieces: Pieces, read: Read, others: Callable[[Collection[str]], Awaitable[set[str]]]
    ) -> None:
        self._runs = runs
        self._pieces = pieces
        self._read = read
        self._others = others
        self._looked: float | None = None

    async def clear_sometimes(self) -> None:
        """Remove them, if nobody has looked for them lately. Raises StorageError."""
        now = time.monotonic()
        if self._looked is None or now - self._looked > _EVERY:
            await self.clear()
            self._looked = now

    async def clear(self) -> None:
        """Remove them. Raises StorageError."""
        seen = 0
        while True:
            runs, count = await asyncio.wrap_future(self._pieces.runs(seen))
            if not count:
                return
            seen += count
            for run in await self._unknown(runs):
                if self._runs.in_use(run) or await asyncio.wrap_future(self._pieces.age(run)) < OLD:
                    continue
                _log.warning("frames %s belong to no message, and are removed", run)
                await asyncio.wrap_future(self._pieces.clear(run))

    async def _unknown(self, runs: Collection[str]) -> set[str]:
        def unknown(connection: Connection) -> set[str]:
            return {run for run in runs if connection.execute(_KNOWN, (run,)).fetchone() is None}

        found = set(await self._read(unknown))
        return found - await self._others(found) if found else found


_KNOWN = (
    "SELECT 1 FROM places WHERE run = ?1 UNION ALL SELECT 1 FROM begun WHERE run = ?1 "
    "UNION ALL SELECT 1 FROM garbage WHERE run = ?1 UNION ALL SELECT 1 FROM uploads WHERE id = ?1 LIMIT 1"
)
