"""The SQLite file with the rows: one thread that writes, one that reads.

Group commit. A transaction costs an fsync, whatever it holds. So the writing thread takes everything that
waits for it, runs it in one transaction, and lets all of them go when that is on the disk: the more there is
to do at once, the less each costs. Reads go to a second connection, which sees the last commit and waits for
no writer.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from tensorbus.bus.topics import matches
from tensorbus.errors import StorageError, StorageFull, StoreVersion

T = TypeVar("T")

VERSION = 2
"""``PRAGMA user_version`` of the files that this release writes."""

_LARGEST_GROUP = 256

_SCHEMA = """
CREATE TABLE messages (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    topic TEXT NOT NULL,
    key TEXT,
    bytes INTEGER NOT NULL,
    frames INTEGER NOT NULL,
    headers TEXT NOT NULL,
    container TEXT NOT NULL,
    pipeline TEXT NOT NULL,
    items INTEGER,
    original_bytes INTEGER,
    wire_bytes INTEGER,
    digest TEXT NOT NULL,
    created REAL NOT NULL,
    sealed REAL NOT NULL,
    owner TEXT,
    dead TEXT
);
CREATE INDEX messages_by_topic ON messages (topic, seq);
CREATE INDEX messages_by_time ON messages (sealed);
CREATE INDEX messages_by_owner ON messages (owner) WHERE owner IS NOT NULL;
CREATE TABLE bodies (
    id TEXT PRIMARY KEY,
    data BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE keys (
    topic TEXT NOT NULL,
    key TEXT NOT NULL,
    id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    frames INTEGER NOT NULL,
    digest TEXT NOT NULL,
    stored REAL NOT NULL,
    PRIMARY KEY (topic, key)
) WITHOUT ROWID;
CREATE INDEX keys_by_time ON keys (stored);
CREATE TABLE uploads (
    id TEXT PRIMARY KEY,
    topic TEXT NOT NULL,
    key TEXT,
    length INTEGER,
    metadata TEXT NOT NULL,
    owner TEXT,
    created REAL NOT NULL,
    expires REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE policies (
    name TEXT PRIMARY KEY,
    config TEXT NOT NULL,
    created REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE damaged (
    id TEXT PRIMARY KEY,
    reason TEXT NOT NULL,
    found REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE consumers (
    name TEXT PRIMARY KEY,
    uid TEXT NOT NULL UNIQUE,
    config TEXT NOT NULL,
    position INTEGER NOT NULL,
    created REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE deliveries (
    consumer TEXT NOT NULL,
    message TEXT NOT NULL,
    seq INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    due REAL NOT NULL,
    settled INTEGER NOT NULL,
    PRIMARY KEY (consumer, message)
) WITHOUT ROWID;
CREATE INDEX deliveries_by_message ON deliveries (message);
"""


def as_storage_error(problem: sqlite3.Error | OSError, path: Path) -> StorageError:
    """What SQLite or the system says, as an error that tells the caller what to do."""
    text = f"{path}: {problem}"
    full = isinstance(problem, sqlite3.Error) and problem.sqlite_errorcode == sqlite3.SQLITE_FULL
    if full:
        return StorageFull(text + "; free space on the disk that holds the data directory")
    return StorageError(text)


@dataclass(frozen=True, slots=True)
class _Change(Generic[T]):
    operation: Callable[[sqlite3.Connection], T]
    outcome: Future[T]


class Metadata:
    """An open metadata file.

    Args:
        path: the file; it is made if it is missing.
        before_commit: called in the writing thread before every commit, which fails if it raises OSError.
    """

    def __init__(self, path: Path, before_commit: Callable[[], None]) -> None:
        self._path = path
        self._before_commit = before_commit
        self._waiting: SimpleQueue[_Change[object] | None] = SimpleQueue()
        self._writer: threading.Thread | None = None
        self._reader: ThreadPoolExecutor | None = None
        self._closed = False

    def open(self) -> None:
        """Check the version, make the tables if the file is new, and start both threads. Blocks.

        Raises:
            StoreVersion: a newer release has written the file; it is left as it is.
            StorageError: it is no database, or cannot be read or written.
        """
        try:
            self._prepare()
            self._write_connection = self._connect()
            self._read_connection = self._connect()
        except sqlite3.Error as problem:
            raise as_storage_error(problem, self._path) from problem
        self._read_connection.create_function("topic_matches", 2, matches, deterministic=True)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="tensorbus-read")
        self._writer = threading.Thread(target=self._write_groups, name="tensorbus-commit", daemon=True)
        self._writer.start()

    def close(self) -> None:
        """Commit what waits, stop both threads and close the file. Blocks; idempotent."""
        if self._writer is None or self._reader is None:
            return
        self._closed = True
        self._waiting.put(None)
        self._writer.join()
        while not self._waiting.empty():
            late = self._waiting.get()
            if late is not None and late.outcome.set_running_or_notify_cancel():
                late.outcome.set_exception(self._is_closed())
        self._reader.shutdown()
        self._read_connection.close()
        self._write_connection.close()
        self._writer = self._reader = None

    async def write(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``operation`` in the next transaction; its result, once that is on the disk.

        The operation may be part of a larger transaction: it raises nothing but sqlite3.Error, with which the
        whole group fails. Once begun it is carried through, even if the caller is cancelled.

        Raises:
            StorageFull, StorageError: nothing of the operation was stored.
        """
        if self._closed:
            raise self._is_closed()
        outcome: Future[T] = Future()
        self._waiting.put(_Change(operation, outcome))  # pyright: ignore[reportArgumentType] # Future is invariant
        return await asyncio.wrap_future(outcome)

    def read_now(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """As ``read``, in the calling thread, while nobody else reads yet: for recovery. Blocks."""
        try:
            return query(self._read_connection)
        except sqlite3.Error as problem:
            raise as_storage_error(problem, self._path) from problem

    async def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """The result of ``query``, which only reads. Raises StorageError."""
        if self._closed or self._reader is None:
            raise self._is_closed()
        try:
            return await asyncio.wrap_future(self._reader.submit(query, self._read_connection))
        except sqlite3.Error as problem:
            raise as_storage_error(problem, self._path) from problem

    def _is_closed(self) -> StorageError:
        return StorageError(f"{self._path} is closed")

    # --- opening -------------------------------------------------------------------------------------

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA busy_timeout = 10000")
        return connection

    def _prepare(self) -> None:
        with closing(self._connect()) as connection:
            version: int = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > VERSION:
                raise StoreVersion(
                    f"{self._path} was written by a newer release (format {version}, this one knows "
                    f"{VERSION}); use that release, or another data directory"
                )
            connection.execute("PRAGMA journal_mode = WAL")
            if version == 0:
                connection.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version = {VERSION};COMMIT;")

    # --- the writing thread --------------------------------------------------------------------------

    def _write_groups(self) -> None:
        stopping = False
        while not stopping:
            group: list[_Change[object]] = []
            change = self._waiting.get()
            while change is not None:
                if change.outcome.set_running_or_notify_cancel():
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
        connection = self._write_connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            results = [change.operation(connection) for change in group]
            self._before_commit()
            connection.execute("COMMIT")
        except BaseException as problem:
            self._roll_back(connection)
            failure = problem
            if isinstance(problem, sqlite3.Error | OSError) and not isinstance(problem, StorageError):
                failure = as_storage_error(problem, self._path)
            for change in group:
                change.outcome.set_exception(failure)
            return
        for change, result in zip(group, results, strict=True):
            change.outcome.set_result(result)

    @staticmethod
    def _roll_back(connection: sqlite3.Connection) -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            pass  # the failure that led here is the one to report; SQLite rolls back on its own
