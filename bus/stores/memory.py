"""A store in memory: for tests of what is built on a broker, and of what does not depend on a disk.

It is the store that several brokers share, with nobody to share it with: the same rows and commands, and
frames in pieces. What is in it is gone with the process; a broker that is stopped and started finds it again
in the same `Memory`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from tensorbus.errors import StorageError, StorageFull

from .logs import Deliver, Log
from .replicated import ReplicatedStore
from .runs import Pieces
from .values import Disk

T = TypeVar("T")


class Memory(Pieces):
    """Frames and records.

    Args:
        limit: bytes of frames that there is room for.
        piece: bytes of a piece.
    """

    def __init__(self, limit: int = 1 << 40, piece: int = 64 << 10) -> None:
        self.size = piece
        self.limit = limit
        self.records: list[bytes] = []
        self._pieces: dict[str, dict[int, tuple[bytes, int]]] = {}
        self._versions = 0
        self._held = 0

    def put(self, run: str, number: int, data: bytes, before: int, epoch: int = 0) -> Future[int]:
        """Store a piece; with nobody to share the memory with, epochs say nothing."""
        del epoch
        pieces = self._pieces.setdefault(run, {})
        held = pieces.get(number, (b"", 0))
        if held[1] != before:
            return _failed(StorageError(f"another broker goes on with {run}"))
        if self._held + len(data) - len(held[0]) > self.limit:
            return _failed(StorageFull(f"there is room for {self.limit} bytes; delete messages"))
        self._held += len(data) - len(held[0])
        self._versions += 1
        pieces[number] = (data, self._versions)
        return _done(self._versions)

    def get(self, run: str, number: int, size: int | None) -> Future[tuple[bytes, int] | None]:
        """A piece."""
        return _done(self._pieces.get(run, {}).get(number))

    def count(self, run: str) -> Future[int]:
        """How many pieces there are without a gap."""
        pieces = self._pieces.get(run, {})
        count = 0
        while count in pieces:
            count += 1
        return _done(count)

    def cut(self, run: str, number: int) -> Future[None]:
        """Remove the last pieces."""
        pieces = self._pieces.get(run, {})
        for there in [there for there in pieces if there >= number]:
            self._held -= len(pieces.pop(there)[0])
        return _done(None)

    def clear(self, run: str) -> Future[None]:
        """Remove a run."""
        self.cut(run, 0)
        self._pieces.pop(run, None)
        return _done(None)

    def runs(self, seen: int) -> Future[tuple[Collection[str], int]]:
        """All at once."""
        count = sum(map(len, self._pieces.values()))
        return _done(([*self._pieces] if seen < count else [], count - seen))

    def age(self, run: str) -> Future[float]:
        """There is no other broker that would write: it is new."""
        return _done(0.0)

    def disk(self) -> Future[Disk]:
        """What is free of the limit."""
        return _done(Disk(self.limit - self._held, self.limit))

    def check_room(self, size: int) -> None:
        """Raise StorageFull if ``size`` more bytes would be over the limit."""
        if self._held + size > self.limit:
            raise StorageFull(f"{self.limit - self._held} bytes are free, {size} are needed; delete messages")


class MemoryStore(ReplicatedStore):
    """Messages in memory."""

    kind = "memory"

    def __init__(self, memory: Memory | None = None) -> None:
        memory = memory or Memory()
        super().__init__(_MemoryLog(memory), memory, "the store in memory")


class _MemoryLog(Log):
    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._deliver: Deliver | None = None
        self._applying: asyncio.Task[None] | None = None

    async def start(self, rows: Path) -> None:
        """There is nothing to start."""

    async def follow(
        self, after: int, deliver: Deliver, lost: Callable[[str], None], reads: Callable[[str], bool]
    ) -> None:
        """Deliver what is there."""
        for seq, record in enumerate(self._memory.records[after:], after + 1):
            await deliver(seq, record)
        self._deliver = deliver

    async def append(self, record: bytes) -> None:
        """Keep it, and deliver it."""
        if self._deliver is None:
            raise StorageError("it is closed")
        self._memory.records.append(record)
        self._applying = asyncio.ensure_future(self._deliver(len(self._memory.records), record))

    async def catch_up(self) -> None:
        """All that was appended is applied."""
        if self._applying is not None:
            await asyncio.wait([self._applying])

    async def keep_short(self, copy: Callable[[Path], int]) -> None:
        """The log is as long as the process lives."""

    async def shorten(self, copy: Callable[[Path], int]) -> None:
        """As ``keep_short``."""

    def check(self) -> None:
        """Memory is always there."""

    async def close(self) -> None:
        """Nothing more is delivered."""
        self._deliver = None
        await self.catch_up()


def _done(result: T) -> Future[T]:
    future: Future[T] = Future()
    future.set_result(result)
    return future


def _failed(problem: StorageError) -> Future[int]:
    future: Future[int] = Future()
    future.set_exception(problem)
    return future
