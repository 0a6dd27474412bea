"""Rows about messages and their idempotency keys: statements on an open connection, nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from sqlite3 import Connection
from typing import Any, Literal

from tensorbus.bus.messages import MessageInfo, Receipt, TopicInfo
from tensorbus.bus.topics import is_literal

from .base import StoredDelivery
from .consumer_rows import last_seq, put_deliveries

_COLUMNS = (
    "seq, id, topic, key, bytes, frames, headers, container, pipeline, items, original_bytes, wire_bytes, "
    "digest, created, sealed"
)
_KEY_COLUMNS = "id, seq, topic, key, bytes, frames, digest"

Row = tuple[Any, ...]
"""A row of SQLite: what its columns are is known from the statement alone."""


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _info(row: Row) -> MessageInfo:
    return MessageInfo(
        seq=row[0],
        id=row[1],
        topic=row[2],
        key=row[3],
        state="sealed",
        bytes=row[4],
        frames=row[5],
        headers=json.loads(row[6]),
        container=row[7],
        pipeline=json.loads(row[8]),
        items=row[9],
        original_bytes=row[10],
        wire_bytes=row[11],
        digest=row[12],
        created=_moment(row[13]),
        sealed=_moment(row[14]),
    )


def _where(pattern: str) -> tuple[str, tuple[str, ...]]:
    """A condition on the topic; the index serves a filter without wildcards."""
    if pattern == ">":
        return "1", ()
    if is_literal(pattern):
        return "topic = ?", (pattern,)
    return "topic_matches(?, topic)", (pattern,)


def seal(info: MessageInfo, followers: Sequence[StoredDelivery]) -> Callable[[Connection], Receipt]:
    """List a message under the next seq, unless its key is there; see ``Store.seal``."""
    assert info.digest is not None and info.sealed is not None
    digest, sealed = info.digest, info.sealed

    def operation(connection: Connection) -> Receipt:
        if info.key is not None and (first := receipt(info.topic, info.key)(connection)) is not None:
            return first
        values = (
            info.id,
            info.topic,
            info.key,
            info.bytes,
            info.frames,
            json.dumps(dict(info.headers)),
            info.container,
            json.dumps(dict(info.pipeline)),
            info.items,
            info.original_bytes,
            info.wire_bytes,
            digest,
            info.created.timestamp(),
            sealed.timestamp(),
        )
        marks = ", ".join("?" * len(values))
        cursor = connection.execute(f"INSERT INTO messages ({_COLUMNS[5:]}) VALUES ({marks})", values)
        seq = cursor.lastrowid
        assert seq is not None
        stored = Receipt(info.id, seq, info.topic, info.key, info.bytes, info.frames, digest)
        if info.key is not None:
            connection.execute(
                f"INSERT INTO keys ({_KEY_COLUMNS}, stored) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (info.id, seq, info.topic, info.key, info.bytes, info.frames, digest, sealed.timestamp()),
            )
        put_deliveries(connection, followers, seq)
        return stored

    return operation


def delete(message_id: str) -> Callable[[Connection], bool]:
    """Remove a message and its deliveries, keeping its key; False if it is not there."""

    def operation(connection: Connection) -> bool:
        connection.execute("DELETE FROM deliveries WHERE message = ?", (message_id,))
        return connection.execute("DELETE FROM messages WHERE id = ?", (message_id,)).rowcount > 0

    return operation


def receipt(topic: str, key: str) -> Callable[[Connection], Receipt | None]:
    """The first receipt of a key, marked as a duplicate."""

    def query(connection: Connection) -> Receipt | None:
        row: Row | None = connection.execute(
            f"SELECT {_KEY_COLUMNS} FROM keys WHERE topic = ? AND key = ?", (topic, key)
        ).fetchone()
        return None if row is None else Receipt(*row, duplicate=True)

    return query


def message(message_id: str) -> Callable[[Connection], MessageInfo | None]:
    """One message."""

    def query(connection: Connection) -> MessageInfo | None:
        row: Row | None = connection.execute(
            f"SELECT {_COLUMNS} FROM messages WHERE id = ?", (message_id,)
        ).fetchone()
        return None if row is None else _info(row)

    return query


def listing(
    pattern: str, after: int | None, limit: int, order: Literal["asc", "desc"]
) -> Callable[[Connection], list[MessageInfo]]:
    """Messages with matching topics by seq, behind ``after``."""
    condition, values = _where(pattern)
    beyond = "seq > ?" if order == "asc" else "seq < ?"
    if after is None:
        after = 0 if order == "asc" else 2**63 - 1

    def query(connection: Connection) -> list[MessageInfo]:
        rows = connection.execute(
            f"SELECT {_COLUMNS} FROM messages WHERE {beyond} AND {condition} ORDER BY seq {order} LIMIT ?",
            (after, *values, limit),
        )
        return [_info(row) for row in rows]

    return query


def scan(pattern: str, after: int, limit: int) -> Callable[[Connection], tuple[list[MessageInfo], int]]:
    """The next messages after a seq, and the seq up to which there are no others."""
    following = listing(pattern, after, limit, "asc")

    def query(connection: Connection) -> tuple[list[MessageInfo], int]:
        # The end is read first: what is sealed between the two statements has a seq beyond it.
        end = last_seq(connection)
        found = following(connection)
        if len(found) < limit:
            return found, max([after, end, *(info.seq or 0 for info in found[-1:])])
        return found, found[-1].seq or after

    return query


def backlog(pattern: str, after: int) -> Callable[[Connection], int]:
    """Number of matching messages after a seq."""
    condition, values = _where(pattern)

    def query(connection: Connection) -> int:
        return connection.execute(
            f"SELECT count(*) FROM messages WHERE seq > ? AND {condition}", (after, *values)
        ).fetchone()[0]

    return query


def topics(connection: Connection) -> list[TopicInfo]:
    """What is stored under each topic."""
    rows = connection.execute(
        "SELECT topic, count(*), sum(bytes), min(seq), max(seq) FROM messages GROUP BY topic ORDER BY topic"
    )
    return [TopicInfo(*row) for row in rows]


def totals(connection: Connection) -> tuple[int, int]:
    """Messages and bytes."""
    return connection.execute("SELECT count(*), coalesce(sum(bytes), 0) FROM messages").fetchone()


def sizes(connection: Connection) -> dict[str, int]:
    """Bytes of every message by id."""
    return dict(connection.execute("SELECT id, bytes FROM messages"))
