"""The SQLite file with the rows: one thread that writes, one that reads, one that tidies.

Group commit. A transaction costs an fsync, whatever it holds. So the writing thread takes everything that
waits for it, in the order in which it was given, runs it in one transaction, and lets all of them go when
that is on the disk: the more there is to do at once, the less each costs. A thread that has nothing to do is
woken only after a few turns of the event loop: a message that is listed wakes those who wait for it, and so
they are handed it by the same flush of the disk. Reads go to a second connection, which sees the last commit
and waits for no writer.

A commit appends to the write-ahead log. To bring the log's pages into the file takes longer than a commit and
two more syncs, so a third thread does it with a connection of its own, while commits go on. The log begins
anew once a commit finds that all of it was brought over. Under steady load that would never be so; hence the
limit beyond which the writing thread brings over the rest itself, which is little then.
"""

from __future__ import annotations

import asyncio
import errno
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar, cast

from tensorbus.bus.topics import matches
from tensorbus.errors import StorageError, StorageFull, StoreVersion, TensorbusError

from .base import Space
from .syncing import Syncing

T = TypeVar("T")

VERSION = 2
"""``PRAGMA user_version`` of the files that this release writes."""

_LARGEST_GROUP = 256
_TURNS = 3
"""Turns of the event loop in which changes gather before the writing thread is woken."""
_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_SYNC_FAILED = (sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC)
_TIDY_AFTER = 256
"""Changes after which the log's pages are brought into the file."""
_LONGEST_LOG = 4000
"""Pages of the log, of 4 KiB, beyond which the writing thread brings over what the tidying one has left."""
_LOG_BYTES = 18 * 1024 * 1024
"""What is kept of a log that begins anew: nearly all. To write over a file costs one write of
the disk, to append to it two, since its new length has to be written as well."""
_LOG_AT_REST = 4 * 1024 * 1024
"""What is kept of one that nothing was appended to for a while."""
_CACHE_KIB = 4096

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
CREATE INDEX messages_that_are_dead ON messages (seq) WHERE dead IS NOT NULL;
CREATE TABLE bodies (
    seq INTEGER PRIMARY KEY,
    data BLOB NOT NULL
);
CREATE TABLE usage (
    topic TEXT PRIMARY KEY,
    messages INTEGER NOT NULL,
    bytes INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE owners (
    owner TEXT PRIMARY KEY,
    messages INTEGER NOT NULL,
    bytes INTEGER NOT NULL
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
    gone INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (topic, key)
) WITHOUT ROWID;
CREATE INDEX keys_of_the_gone ON keys (topic, stored) WHERE gone = 1;
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
    created REAL NOT NULL,
    owner TEXT
) WITHOUT ROWID;
CREATE TABLE deliveries (
    consumer TEXT NOT NULL,
    message TEXT NOT NULL,
    seq INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    due REAL NOT NULL,
    settled INTEGER NOT NULL,
    returned INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (consumer, message)
) WITHOUT ROWID;
CREATE INDEX deliveries_by_message ON deliveries (message);
CREATE INDEX deliveries_ahead ON deliveries (consumer, seq) WHERE settled = 1;
CREATE TRIGGER message_listed AFTER INSERT ON messages BEGIN
    INSERT INTO usage (topic, messages, bytes) VALUES (new.topic, 1, new.bytes)
        ON CONFLICT (topic) DO UPDATE SET messages = messages + 1, bytes = bytes + excluded.bytes;
    INSERT INTO owners (owner, messages, bytes) SELECT new.owner, 1, new.bytes
        WHERE new.owner IS NOT NULL AND new.dead IS NULL
        ON CONFLICT (owner) DO UPDATE SET messages = messages + 1, bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER message_removed AFTER DELETE ON messages BEGIN
    DELETE FROM bodies WHERE seq = old.seq;
    DELETE FROM deliveries WHERE message = old.id;
    DELETE FROM damaged WHERE id = old.id;
    UPDATE keys SET gone = 1 WHERE topic = old.topic AND key = old.key AND id = old.id;
    UPDATE usage SET messages = messages - 1, bytes = bytes - old.bytes WHERE topic = old.topic;
    DELETE FROM usage WHERE topic = old.topic AND messages = 0;
    UPDATE owners SET messages = messages - 1, bytes = bytes - old.bytes
        WHERE owner = old.owner AND old.dead IS NULL;
    DELETE FROM owners WHERE owner = old.owner AND messages = 0;
END;
"""


def as_storage_error(problem: sqlite3.Error | OSError, path: Path) -> StorageError:
    """What SQLite or the system says, as an error that tells the caller what to do."""
    text = f"{path}: {problem}"
    if isinstance(problem, sqlite3.Error):
        if problem.sqlite_errorcode & 0xFF in _CORRUPT:
            return StorageError(
                f"{text}; the file is damaged. Restore the data directory from a backup, or let "
                "`sqlite3 meta.db .recover` save what there is; docs/durability.md says how"
            )
        full = problem.sqlite_errorcode == sqlite3.SQLITE_FULL
    else:
        full = problem.errno in (errno.ENOSPC, errno.EDQUOT)
    if full:
        return StorageFull(text + "; free space on the disk that holds the data directory")
    return StorageError(text)


@dataclass(frozen=True, slots=True)
class _Change(Generic[T]):
    operation: Callable[[sqlite3.Connection], T]
    outcome: asyncio.Future[T]


class Metadata:
    """An open metadata file.

    Args:
        path: the file; it is made if it is missing.
        before_commit: called in the writing thread before every commit, which fails if it raises OSError.
        syncing: when a commit gets onto the disk.
    """

    def __init__(self, path: Path, before_commit: Callable[[], None], syncing: Syncing | None = None) -> None:
        self._path = path
        self._before_commit = before_commit
        self._syncing = syncing or Syncing()
        self._waiting: SimpleQueue[_Change[object] | None] = SimpleQueue()
        self._gathered: deque[_Change[object]] = deque()
        self._busy = False
        self._changes = 0
        self._changes_seen = 0
        self._tidy = threading.Event()
        self._tidying = threading.Lock()
        self._writer: threading.Thread | None = None
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
        self._writer = threading.Thread(target=self._write_groups, name="tensorbus-commit", daemon=True)
        self._writer.start()
        self._tidier = threading.Thread(target=self._tidy_up, name="tensorbus-tidy", daemon=True)
        self._tidier.start()

    def close(self) -> None:
        """Commit what waits, stop the threads and close the file. Blocks; idempotent."""
        if self._writer is None or self._reader is None or self._tidier is None:
            return
        self._closed = True
        self._hand_on()
        self._waiting.put(None)
        self._writer.join()
        late: list[_Change[object]] = []
        while not self._waiting.empty():
            if (change := self._waiting.get()) is not None:
                late.append(change)
        _tell_failure(late, self._is_closed())
        self._tidy.set()
        self._tidier.join()
        self._reader.shutdown()
        with self._tidying:
            pass  # nobody uses the connections any more
        for connection in (self._read_connection, self._tidy_connection, self._write_connection):
            connection.close()
        self._writer = self._reader = self._tidier = None

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
            version: int = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > VERSION:
                raise StoreVersion(
                    f"{self._path} was written by a newer release (format {version}, this one knows "
                    f"{VERSION}); use that release, or another data directory"
                )
            if 0 < version < VERSION:
                raise StoreVersion(
                    f"{self._path} was written by an older release (format {version}, this one needs "
                    f"{VERSION}); fetch the messages with that release, or use another data directory"
                )
            if version == 0:
                # Free pages can be given back; this can only be said while the file is empty.
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            if version == 0:
                connection.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version = {VERSION};COMMIT;")

    # --- the writing thread --------------------------------------------------------------------------

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
        connection = self._write_connection
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
        before = self._changes
        self._changes += len(group)
        if before // _TIDY_AFTER != self._changes // _TIDY_AFTER:
            self._tidy.set()

    @staticmethod
    def _roll_back(connection: sqlite3.Connection) -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            pass  # the failure that led here is the one to report; SQLite rolls back on its own

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
            quiet = self._changes == self._changes_seen
            self._changes_seen = self._changes
            if quiet and self.log.stat().st_size > _LOG_AT_REST:
                self._tidy_connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


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
