"""The SQLite file with the rows: one thread that writes, one that reads, one that tidies.

What is written goes through ``Commits``. Reads go to a second connection, which sees the last commit and
waits for no writer.

A commit appends to the write-ahead log. To bring the log's pages into the file takes longer than a commit
and two more syncs, so a third thread does it with a connection of its own, while commits go on. The log
begins anew once a commit finds that all of it was brought over. Under steady load that would never be so;
hence the limit beyond which the writing thread brings over the rest itself, which is little then.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeVar

from tensorbus.bus.topics import matches
from tensorbus.errors import StorageError

from .commits import Commits
from .schema import prepare
from .storage_errors import as_storage_error
from .syncing import Syncing
from .values import Space

T = TypeVar("T")

_LONGEST_LOG = 4000
"""Pages of the log, of 4 KiB, beyond which the writing thread brings over what the tidying one has left."""
_LOG_BYTES = 18 * 1024 * 1024
"""What is kept of a log that begins anew: nearly all. To write over a file costs one write of
the disk, to append to it two, since its new length has to be written as well."""
_LOG_AT_REST = 4 * 1024 * 1024
"""What is kept of one that nothing was appended to for a while."""
_CACHE_KIB = 4096


class Metadata:
    """An open metadata file.

    Args:
        path: the file; it is made if it is missing.
        before_commit: called in the writing thread before every commit, which fails if it raises OSError.
        syncing: when a commit gets onto the disk.
    """

    def __init__(self, path: Path, before_commit: Callable[[], None], syncing: Syncing | None = None) -> None:
        self._path = path
        self._syncing = syncing or Syncing()
        self._tidy = threading.Event()
        self._tidying = threading.Lock()
        self._commits = Commits(path, before_commit, self._syncing, self._tidy.set)
        self._changes_seen = 0
        self._tidier: threading.Thread | None = None
        self._reader: ThreadPoolExecutor | None = None
        self._closed = False

    def open(self) -> None:
        """Check the version, make the tables if the file is new, and start the threads. Blocks.

        Raises:
            StoreVersion: another release has written the file; it is left as it is.
            StorageError: it is no database, or cannot be read or written.
        """
        try:
            self._prepare()
            self._write_connection = self._connect()
            self._write_connection.execute(f"PRAGMA wal_autocheckpoint = {_LONGEST_LOG}")
            self._tidy_connection = self._connect()
            # It waits for no reader, since commits would wait with it.
            self._tidy_connection.execute("PRAGMA busy_timeout = 50")
            self._read_connection = self._connect()
        except sqlite3.Error as problem:
            raise as_storage_error(problem, self._path) from problem
        for connection in (self._read_connection, self._write_connection):
            connection.create_function("topic_matches", 2, matches, deterministic=True)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="tensorbus-read")
        self._commits.start(self._write_connection)
        self._tidier = threading.Thread(target=self._tidy_up, name="tensorbus-tidy", daemon=True)
        self._tidier.start()

    def close(self) -> None:
        """Commit what waits, stop the threads and close the file. Blocks; idempotent."""
        if self._reader is None or self._tidier is None:
            return
        self._closed = True
        self._commits.stop()
        self._tidy.set()
        self._tidier.join()
        self._reader.shutdown()
        with self._tidying:
            pass  # nobody uses the connections any more
        for connection in (self._read_connection, self._tidy_connection, self._write_connection):
            connection.close()
        self._reader = self._tidier = None

    def write(self, operation: Callable[[sqlite3.Connection], T]) -> Coroutine[Any, Any, T]:
        """Run ``operation`` in the next transaction; its result, once that is on the disk.

        See ``Commits.write``.

        Raises:
            StorageFull, StorageError: nothing of the operation was stored.
        """
        return self._commits.write(operation)

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

    def read_blocking(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """As ``read``, for a worker thread. Blocks."""
        if self._closed or self._reader is None:
            raise self._is_closed()
        try:
            return self._reader.submit(query, self._read_connection).result()
        except sqlite3.Error as problem:
            raise as_storage_error(problem, self._path) from problem

    def read_apart(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """As ``read_blocking``, on a connection of its own: for what takes long and shall hold up nobody."""
        try:
            with closing(self._connect()) as connection:
                return query(connection)
        except sqlite3.Error as problem:
            raise as_storage_error(problem, self._path) from problem

    @property
    def log(self) -> Path:
        """The file that commits are appended to."""
        return self._path.with_name(self._path.name + "-wal")

    async def space(self) -> Space:
        """What the file and its log take."""

        def query(connection: sqlite3.Connection) -> Space:
            page, pages, free = (
                connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_size", "page_count", "freelist_count")
            )
            log = self.log.stat().st_size if self.log.exists() else 0
            return Space(page * (pages - free), page * free, log)

        return await self.read(query)

    async def give_back(self, size: int) -> None:
        """Give up to ``size`` free bytes of the file back to the disk; ``tidy`` does it then."""

        def operation(connection: sqlite3.Connection) -> None:
            page: int = connection.execute("PRAGMA page_size").fetchone()[0]
            # Each step of the statement frees a page, so all of its rows have to be taken.
            connection.execute(f"PRAGMA incremental_vacuum({max(1, size // page)})").fetchall()

        await self.write(operation)

    async def tidy(self) -> None:
        """Bring the log over; give its space back too if nothing was written since the last call."""
        await asyncio.to_thread(self._bring_over, shorten=True)

    def _is_closed(self) -> StorageError:
        return StorageError(f"{self._path} is closed")

    # --- opening -------------------------------------------------------------------------------------

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        # NORMAL syncs no commit, but still what keeps the file whole when the log is brought over.
        connection.execute(f"PRAGMA synchronous = {'FULL' if self._syncing.at_once else 'NORMAL'}")
        connection.execute("PRAGMA busy_timeout = 10000")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        connection.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
        return connection

    def _prepare(self) -> None:
        with closing(self._connect()) as connection:
            prepare(connection, self._path)

    # --- the tidying thread --------------------------------------------------------------------------

    def _tidy_up(self) -> None:
        while not self._closed:
            self._tidy.wait()
            self._tidy.clear()
            self._bring_over(shorten=False)

    def _bring_over(self, *, shorten: bool) -> None:
        """What fails is done over by the next call, from where the last good one ended; the log stays."""
        with self._tidying, suppress(sqlite3.Error, OSError):
            if self._closed:
                return
            self._tidy_connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            if not shorten:
                return
            quiet = self._commits.changes == self._changes_seen
            self._changes_seen = self._commits.changes
            if quiet and self.log.stat().st_size > _LOG_AT_REST:
                self._tidy_connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
