"""The rows that a log of commands makes, in a file of this broker's own.

The file is worth nothing by itself: it can be made again from the log, or from a snapshot and the log behind
it, so nothing of it is ever synced. Reading it needs nobody else.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tensorbus.errors import BrokerUnavailable, StorageError, StoreVersion, TensorbusError

from .metadata import Metadata
from .operations import OPERATIONS, TABLES
from .records import Command, Record
from .syncing import Syncing

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Failed:
    """A command that changed nothing, and why."""

    problem: TensorbusError


@dataclass(frozen=True, slots=True)
class Lead:
    """How far the rows are in the log, who is in the lead, and how often that has changed."""

    seq: int
    leader: str
    term: int


class Replica:
    """The rows of a log, up to some place in it.

    Args:
        path: where they are; the folder is this process's alone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._metadata = Metadata(path, _nothing, Syncing("never"))

    async def open(self) -> Lead:
        """Open the file that is there, or a new one; where it is in the log. Raises StorageError."""
        self._metadata.open()
        return await self._metadata.write(_prepare)

    def close(self) -> None:
        """Close the file. Blocks; idempotent."""
        self._metadata.close()

    async def apply(self, seq: int, record: Record) -> Sequence[object] | None:
        """Do what a record says: a result or `Failed` for each command; None if it was done before.

        Records are applied in the order of the calls.

        Raises:
            StoreVersion: there is a command that this release does not know.
            StorageError: this process's own file cannot take it; the rows are not those of the log any more.
        """

        def operation(connection: sqlite3.Connection) -> Sequence[object] | None:
            return _apply(connection, seq, record)

        return await self._metadata.write(operation)

    async def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """The result of a query. Raises StorageError."""
        return await self._metadata.read(query)

    def read_blocking(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """As ``read``, for a worker thread."""
        return self._metadata.read_blocking(query)

    def read_apart(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """As ``read_blocking``, for what takes long."""
        return self._metadata.read_apart(query)

    def copy_to(self, path: Path) -> Lead:
        """Write the rows as they are at some moment to a new file. Blocks."""

        def copy(connection: sqlite3.Connection) -> None:
            connection.execute("VACUUM INTO ?", (str(path),))

        self.read_apart(copy)
        with sqlite3.connect(path) as connection:
            found = state(connection)
        connection.close()
        return found


def state(connection: sqlite3.Connection) -> Lead:
    """Where the rows are in the log."""
    return Lead(*connection.execute("SELECT seq, leader, term FROM state").fetchone())


def _nothing() -> None:
    pass


def _prepare(connection: sqlite3.Connection) -> Lead:
    for statement in TABLES:
        connection.execute(statement)
    return state(connection)


def _apply(connection: sqlite3.Connection, seq: int, record: Record) -> Sequence[object] | None:
    there = state(connection)
    if seq <= there.seq:
        return None
    connection.execute("UPDATE state SET seq = ?", (seq,))
    done = connection.execute("SELECT number FROM writers WHERE writer = ?", (record.writer,)).fetchone()
    if done is not None and record.number <= done[0]:
        return None  # it was sent again though it had arrived
    connection.execute("INSERT OR REPLACE INTO writers VALUES (?, ?)", (record.writer, record.number))
    return [_run(connection, record.writer, command) for command in record.commands]


def _run(connection: sqlite3.Connection, writer: str, command: Command) -> object:
    operation = OPERATIONS.get(command.name)
    if operation is None:
        raise StoreVersion(f"the log has a command {command.name[:40]!r}, which this release does not know")
    leader = state(connection).leader
    if command.name != "lead" and leader != writer:
        return Failed(
            BrokerUnavailable("another broker has taken this store over; the same request succeeds there")
        )
    connection.execute("SAVEPOINT command")
    try:
        result = operation(connection, writer, *command.arguments)
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.DataError, TypeError) as problem:
        # The same everywhere: it lies in the command, not in this process's disk.
        connection.execute("ROLLBACK TO command")
        result = Failed(StorageError(f"{command.name}: {problem}"))
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK TO command")
        raise
    connection.execute("RELEASE command")
    return result
