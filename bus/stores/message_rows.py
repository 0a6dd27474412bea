"""Rows about messages and their idempotency keys: statements on an open connection, nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from sqlite3 import Connection
from typing import Any, Literal

from tensorbus.bus.dead import Death
from tensorbus.bus.messages import MessageInfo, Receipt, TopicInfo
from tensorbus.bus.topics import is_literal

from .consumer_rows import last_seq, put_deliveries
from .damage_rows import is_damaged
from .retention_rows import Refusal, over_terms
from .values import StoredDelivery, Terms

COLUMNS = (
    "seq, id, topic, key, bytes, frames, headers, container, pipeline, items, original_bytes, wire_bytes, "
    "digest, created, sealed, dead"
)
_INSERT = (
    "INSERT INTO messages (id, topic, key, bytes, frames, headers, container, pipeline, items, "
    "original_bytes, wire_bytes, digest, created, sealed, owner) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_KEY_COLUMNS = "id, seq, topic, key, bytes, frames, digest"

_MATCHED_ONE_BY_ONE = 5000
"""Messages of a log whose topics are matched each by itself, rather than those of all topics."""
PAGE_BYTES = 1 << 20
"""Of headers and pipelines, beyond which no more messages are given at a time."""

Row = tuple[Any, ...]
"""A row of SQLite: what its columns are is known from the statement alone."""


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def to_info(row: Row) -> MessageInfo:
    """The message of a row that begins with ``COLUMNS``."""
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
        dead=None if row[15] is None else Death.from_json(json.loads(row[15])),
    )


def weight(row: Row) -> int:
    """Bytes of the parts of a row that begins with ``COLUMNS`` which its publisher may make long."""
    return len(row[6]) + len(row[8])


def where(pattern: str) -> tuple[str, tuple[str, ...]]:
    """A condition on the topic; the index serves a filter without wildcards."""
    if pattern == ">":
        return "1", ()
    if is_literal(pattern):
        return "topic = ?", (pattern,)
    return "topic_matches(?, topic)", (pattern,)


def seal(
    info: MessageInfo, followers: Sequence[StoredDelivery], body: bytes | None, terms: Terms
) -> Callable[[Connection], Receipt | Refusal]:
    """List a message under the next seq, unless its key is there or it is over a quota; see ``Store.seal``.

    A quota that is exceeded is returned, since whoever shares the transaction has no part in it.
    """
    assert info.digest is not None and info.sealed is not None
    digest, sealed = info.digest, info.sealed

    def operation(connection: Connection) -> Receipt | Refusal:
        first = None if info.key is None else receipt(info.topic, info.key)(connection)
        if first is not None and (first.id != terms.replaces or not is_damaged(connection, first.id)):
            return first
        if (problem := over_terms(connection, info.topic, info.bytes, terms)) is not None:
            return problem
        if first is not None:
            connection.execute("DELETE FROM messages WHERE id = ?", (first.id,))
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
            terms.owner,
        )
        cursor = connection.execute(_INSERT, values)
        seq = cursor.lastrowid
        assert seq is not None
        if body is not None:
            connection.execute("INSERT INTO bodies (seq, data) VALUES (?, ?)", (seq, body))
        connection.execute("DELETE FROM uploads WHERE id = ?", (info.id,))
        stored = Receipt(info.id, seq, info.topic, info.key, info.bytes, info.frames, digest)
        if info.key is not None:
            connection.execute(
                f"INSERT OR REPLACE INTO keys ({_KEY_COLUMNS}, stored) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (info.id, seq, info.topic, info.key, info.bytes, info.frames, digest, sealed.timestamp()),
            )
        put_deliveries(connection, followers, seq)
        return stored

    return operation


def body(message_id: str) -> Callable[[Connection], bytes | None]:
    """The frames of a small message, if they are kept with its row."""

    def query(connection: Connection) -> bytes | None:
        row: tuple[bytes] | None = connection.execute(
            "SELECT data FROM bodies WHERE seq = (SELECT seq FROM messages WHERE id = ?)", (message_id,)
        ).fetchone()
        return None if row is None else row[0]

    return query


def bodies(message_ids: Sequence[str]) -> Callable[[Connection], dict[str, bytes]]:
    """The frames of those of the messages that are kept with their rows."""
    wanted = json.dumps(list(message_ids))

    def query(connection: Connection) -> dict[str, bytes]:
        return dict(
            connection.execute(
                "SELECT id, data FROM messages JOIN bodies USING (seq) "
                "WHERE id IN (SELECT value FROM json_each(?))",
                (wanted,),
            )
        )

    return query


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
            f"SELECT {COLUMNS} FROM messages WHERE id = ?", (message_id,)
        ).fetchone()
        return None if row is None else to_info(row)

    return query


def listing(
    pattern: str, after: int | None, limit: int, order: Literal["asc", "desc"], dead: bool
) -> Callable[[Connection], list[MessageInfo]]:
    """Messages with matching topics by seq, behind ``after``; or dead letters only."""
    statement, values = _listing(pattern, after, limit, order, dead)

    def query(connection: Connection) -> list[MessageInfo]:
        return [to_info(row) for row in connection.execute(statement, values)]

    return query


def _listing(
    pattern: str, after: int | None, limit: int, order: Literal["asc", "desc"], dead: bool
) -> tuple[str, tuple[object, ...]]:
    condition, values = where(pattern)
    if dead:
        condition += " AND dead IS NOT NULL"
    beyond = "seq > ?" if order == "asc" else "seq < ?"
    if after is None:
        after = 0 if order == "asc" else 2**63 - 1
    return (
        f"SELECT {COLUMNS} FROM messages WHERE {beyond} AND {condition} ORDER BY seq {order} LIMIT ?",
        (after, *values, limit),
    )


def page(
    pattern: str, after: int | None, limit: int, order: Literal["asc", "desc"], dead: bool
) -> Callable[[Connection], tuple[list[MessageInfo], bool]]:
    """As ``listing``, as many as fit a page, and whether there are more; see ``Store.page``."""
    statement, values = _listing(pattern, after, limit + 1, order, dead)

    def query(connection: Connection) -> tuple[list[MessageInfo], bool]:
        found: list[MessageInfo] = []
        room = PAGE_BYTES
        for row in connection.execute(statement, values):
            if len(found) == limit or room <= 0:
                return found, True
            found.append(to_info(row))
            room -= weight(row)
        return found, False

    return query


def next_match(pattern: str, after: int) -> Callable[[Connection], int]:
    """The seq of the first matching message behind a seq; see ``Store.next_match``."""
    condition, values = where(pattern)

    def query(connection: Connection) -> int:
        # The end is read first: what is sealed between the two statements has a seq beyond it.
        end = max(after, last_seq(connection)) + 1
        row: tuple[int] | None = connection.execute(
            f"SELECT seq FROM messages WHERE seq > ? AND {condition} ORDER BY seq LIMIT 1", (after, *values)
        ).fetchone()
        return end if row is None else row[0]

    return query


def backlog(pattern: str, after: int) -> Callable[[Connection], int]:
    """Number of matching messages after a seq that can be delivered."""
    condition, values = where(pattern)

    def query(connection: Connection) -> int:
        chosen = condition
        if values and not is_literal(pattern) and last_seq(connection) - after > _MATCHED_ONE_BY_ONE:
            # To match each topic once and count in its index is far less work than to match each message.
            chosen = f"topic IN (SELECT topic FROM usage WHERE {condition})"
        matching, damaged = connection.execute(
            f"SELECT (SELECT count(*) FROM messages WHERE seq > ?1 AND {chosen.replace('?', '?2')}), "
            f"(SELECT count(*) FROM messages WHERE seq > ?1 AND {condition.replace('?', '?2')} "
            "AND id IN (SELECT id FROM damaged))",
            (after, *values),
        ).fetchone()
        return matching - damaged

    return query


def topics(connection: Connection) -> list[TopicInfo]:
    """What is stored under each topic."""
    rows = connection.execute(
        "SELECT topic, messages, bytes, (SELECT min(seq) FROM messages WHERE messages.topic = usage.topic), "
        "(SELECT max(seq) FROM messages WHERE messages.topic = usage.topic) FROM usage ORDER BY topic"
    )
    return [TopicInfo(*row) for row in rows]


def totals(connection: Connection) -> tuple[int, int]:
    """Messages and bytes."""
    return connection.execute(
        "SELECT coalesce(sum(messages), 0), coalesce(sum(bytes), 0) FROM usage"
    ).fetchone()
