"""Whose frames a store keeps: files, pieces in memory, messages of a stream."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Collection
from contextlib import closing
from pathlib import Path

from .kinds import Stores, turn_bits_of_body, turned

_PATIENCE = 10.0


class FramesLeft:
    """Asks the stores of the test that runs.

    Attributes:
        stores: that stand in the place of the embedded one; None where it is the embedded one.
    """

    stores: Stores | None = None

    async def ids(self, path: Path) -> set[str]:
        """Ids of the messages that a store has frames of beside its rows, when it has cleaned up."""
        if self.stores is None:
            return {
                file.name.removesuffix(".frames") for file in (path / "frames").iterdir() if file.is_file()
            }
        return await self.stores.kept(path)

    async def becomes(self, path: Path, expected: Collection[str]) -> None:
        """These messages, and no others, have frames there, soon: who used others may be about to end."""
        ends = asyncio.get_running_loop().time() + _PATIENCE
        while (found := await self.ids(path)) != set(expected):
            assert asyncio.get_running_loop().time() < ends, (found, set(expected))
            await asyncio.sleep(0.01)

    async def spoil(self, path: Path, message_id: str) -> Callable[[], Awaitable[None]]:
        """Change a byte of a message of a store that runs, behind its back; what brings it back."""
        if (stores := self.stores) is not None:
            await stores.turn_bits(path, message_id)
            return lambda: stores.turn_bits(path, message_id)
        file = path / "frames" / f"{message_id}.frames"
        if not file.exists():
            return _spoil_row(path / "meta.db", message_id)
        good = file.read_bytes()
        file.write_bytes(turned(good))

        async def bring_back() -> None:
            file.write_bytes(good)

        return bring_back


def _spoil_row(path: Path, message_id: str) -> Callable[[], Awaitable[None]]:
    async def turn() -> None:
        with closing(sqlite3.connect(path)) as rows, rows:
            turn_bits_of_body(rows, message_id)

    with closing(sqlite3.connect(path)) as rows, rows:
        turn_bits_of_body(rows, message_id)
    return turn


frames_left = FramesLeft()
