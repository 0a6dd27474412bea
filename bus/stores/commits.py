"""Group commit: one thread that takes whatever waits for it, and commits it in one transaction.

A transaction costs an fsync, whatever it holds. So the thread takes everything that waits for it, in the
order in which it was given, runs it in one transaction, and lets all of them go when that is on the disk:
the more there is to do at once, the less each costs. A thread that has nothing to do is woken only after a
few turns of the event loop: a message that is listed wakes those who wait for it, and so they are handed it
by the same flush of the disk.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar, cast

from tensorbus.errors import StorageError, TensorbusError

from .storage_errors import as_storage_error
from .syncing import Syncing

T = TypeVar("T")

_LARGEST_GROUP = 256
_TURNS = 3
"""Turns of the event loop in which changes gather before the thread is woken."""
_GROWN_AFTER = 256
"""Changes after which the log has grown."""
_SYNC_FAILED = (sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC)


@dataclass(frozen=True, slots=True)
class _Change(Generic[T]):
    operation: Callable[[sqlite3.Connection], T]
    outcome: asyncio.Future[T]


class Commits:
    """The thread that writes one file.

    Args:
        path: the file, for errors.
        before_commit: called in the thread before every commit, which fails if it raises OSError.
        syncing: when a commit gets onto the disk.
        grown: called in the thread once in a while, when the log has grown.

    Attributes:
        changes: how many were committed.
    """

    def __init__(
        self, path: Path, before_commit: Callable[[], None], syncing: Syncing, grown: Callable[[], None]
    ) -> None:
        self.changes = 0
        self._path = path
        self._before_commit = before_commit
        self._syncing = syncing
        self._grown = grown
        self._waiting: SimpleQueue[_Change[object] | None] = SimpleQueue()
        self._gathered: deque[_Change[object]] = deque()
        self._busy = False
        self._closed = False
        self._thread: threading.Thread | None = None

    def start(self, connection: sqlite3.Connection) -> None:
        """Begin to write; nobody else uses ``connection``."""
        self._connection = connection
        self._thread = threading.Thread(target=self._write_groups, name="tensorbus-commit", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Commit what waits, and end. Blocks."""
        self._closed = True
        self._hand_on()
        self._waiting.put(None)
        if self._thread is not None:
            self._thread.join()
        late: list[_Change[object]] = []
        while not self._waiting.empty():
            if (change := self._waiting.get()) is not None:
                late.append(change)
        _tell_failure(late, self._is_closed())

    async def write(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``operation`` in the next transaction; its result, once that is on the disk.

        Operations run in the order of the calls. One may be part of a larger transaction: it raises nothing
        but sqlite3.Error, with which the whole group fails. Where the fault is its own, and not the disk's,
        it fails alone: the others are run once more without it. Once begun it is carried through, even if the
        caller is cancelled.

        Raises:
            StorageFull, StorageError: nothing of the operation was stored.
        """
        if self._closed:
            raise self._is_closed()
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[T] = loop.create_future()
        change = cast("_Change[object]", _Change(operation, outcome))
        if self._gathered:
            self._gathered.append(change)
        elif self._busy:
            self._waiting.put(change)  # it looks there when it has done what it does
        else:
            self._gathered.append(change)
            loop.call_soon(self._gather, loop, _TURNS)
        return await outcome

    def _gather(self, loop: asyncio.AbstractEventLoop, turns: int) -> None:
        if turns > 1:
            loop.call_soon(self._gather, loop, turns - 1)
        else:
            self._hand_on()

    def _hand_on(self) -> None:
        with suppress(IndexError):
            while True:
                self._waiting.put(self._gathered.popleft())

    def _is_closed(self) -> StorageError:
        return StorageError(f"{self._path} is closed")

    # --- in the thread -------------------------------------------------------------------------------

    def _write_groups(self) -> None:
        stopping = False
        while not stopping:
            group: list[_Change[object]] = []
            self._busy = not self._waiting.empty()
            change = self._waiting.get()
            self._busy = True
            while change is not None:
                if not change.outcome.cancelled():
                    group.append(change)
                if len(group) == _LARGEST_GROUP:
                    break
                try:
                    change = self._waiting.get_nowait()
                except Empty:
                    break
            stopping = change is None
            if group:
                self._commit(group)

    def _commit(self, group: list[_Change[object]]) -> None:
        connection = self._connection
        try:
            self._syncing.check_writable()
            connection.execute("BEGIN IMMEDIATE")
            results = [change.operation(connection) for change in group]
            self._before_commit()
            started = time.perf_counter()
            connection.execute("COMMIT")
            self._syncing.committed(time.perf_counter() - started)
        except BaseException as problem:
            if isinstance(problem, sqlite3.Error) and problem.sqlite_errorcode in _SYNC_FAILED:
                self._syncing.fail(f"{self._path}: a commit could not be synced: {problem}")
            self._roll_back(connection)
            if len(group) > 1 and _is_own_fault(problem):
                for change in group:
                    self._commit([change])
                return
            failure = problem
            if isinstance(problem, sqlite3.Error | OSError) and not isinstance(problem, StorageError):
                failure = as_storage_error(problem, self._path)
            _tell_failure(group, failure)
            return
        _tell(group, results)
        before = self.changes
        self.changes += len(group)
        if before // _GROWN_AFTER != self.changes // _GROWN_AFTER:
            self._grown()

    @staticmethod
    def _roll_back(connection: sqlite3.Connection) -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            pass  # the failure that led here is the one to report; SQLite rolls back on its own


def _is_own_fault(problem: BaseException) -> bool:
    """Whether one change of a group is at fault, and not the disk: the others can be done without it."""
    if isinstance(problem, sqlite3.Error):
        return isinstance(problem, sqlite3.IntegrityError | sqlite3.ProgrammingError | sqlite3.DataError)
    return isinstance(problem, Exception) and not isinstance(problem, OSError | TensorbusError)


def _tell(group: Sequence[_Change[object]], results: Sequence[object]) -> None:
    """Let the callers go: one call into their event loop for all of them."""

    def deliver() -> None:
        for change, result in zip(group, results, strict=True):
            if not change.outcome.done():
                change.outcome.set_result(result)

    _in_loop(group, deliver)


def _tell_failure(group: Sequence[_Change[object]], failure: BaseException) -> None:
    def deliver() -> None:
        for change in group:
            if not change.outcome.done():
                change.outcome.set_exception(failure)

    _in_loop(group, deliver)


def _in_loop(group: Sequence[_Change[object]], deliver: Callable[[], None]) -> None:
    """A metadata file belongs to one event loop; if that is closed, nobody waits any more."""
    if group:
        with suppress(RuntimeError):
            group[0].outcome.get_loop().call_soon_threadsafe(deliver)
