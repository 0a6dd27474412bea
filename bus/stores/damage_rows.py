"""Rows about damaged messages, and whether the rows agree: statements on an open connection, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from sqlite3 import Connection

from tensorbus.bus.damage import Damage

from .values import StoredDelivery

_MOST_PROBLEMS = 100

_RULES = (
    ("deliveries of messages that are not there", "deliveries", "message NOT IN (SELECT id FROM messages)"),
    (
        "deliveries to consumers that are not there",
        "deliveries",
        "consumer NOT IN (SELECT uid FROM consumers)",
    ),
    ("bodies of no message", "bodies", "seq NOT IN (SELECT seq FROM messages)"),
    (
        "messages whose idempotency keys have another seq",
        "messages",
        "EXISTS (SELECT 1 FROM keys WHERE keys.id = messages.id AND keys.seq <> messages.seq)",
    ),
    (
        "messages beyond the last seq that was given",
        "messages",
        "seq > (SELECT seq FROM sqlite_sequence WHERE name = 'messages')",
    ),
    (
        "topics whose count of messages or bytes is wrong",
        "(SELECT topic, count(*) AS messages, sum(bytes) AS bytes FROM messages GROUP BY topic "
        "EXCEPT SELECT topic, messages, bytes FROM usage)",
        "1",
    ),
)
"""Of what there has to be nothing: what to call it, the table, the condition."""


def damaged(connection: Connection) -> dict[str, str]:
    """Damaged messages: id and what was found."""
    return dict(connection.execute("SELECT id, reason FROM damaged"))


def is_damaged(connection: Connection, message_id: str) -> bool:
    """Whether a message was noted as damaged."""
    return connection.execute("SELECT 1 FROM damaged WHERE id = ?", (message_id,)).fetchone() is not None


def add(found: Sequence[tuple[str, str]], when: float) -> Callable[[Connection], list[str]]:
    """Note that messages are damaged; which of them were there and not known to be."""

    def operation(connection: Connection) -> list[str]:
        return [
            message_id
            for message_id, reason in found
            if connection.execute(
                "INSERT OR IGNORE INTO damaged (id, reason, found) SELECT ?1, ?2, ?3 "
                "WHERE EXISTS (SELECT 1 FROM messages WHERE id = ?1)",
                (message_id, reason, when),
            ).rowcount
        ]

    return operation


def remove(message_id: str) -> Callable[[Connection], list[StoredDelivery]]:
    """A message is whole again: what consumers had of it, or passed by, and have not settled."""

    def operation(connection: Connection) -> list[StoredDelivery]:
        connection.execute("DELETE FROM damaged WHERE id = ?", (message_id,))
        # Whoever had it was told that it is gone, and waits for nothing.
        connection.execute("UPDATE deliveries SET due = 0 WHERE message = ? AND settled = 0", (message_id,))
        rows = connection.execute(
            "SELECT consumer, message, seq, attempt, due, settled, returned "
            "FROM deliveries WHERE message = ? AND settled = 0",
            (message_id,),
        )
        return [StoredDelivery(*row) for row in rows]

    return operation


def damages(after: int, limit: int) -> Callable[[Connection], list[Damage]]:
    """Damaged messages by seq, behind ``after``."""

    def query(connection: Connection) -> list[Damage]:
        rows = connection.execute(
            "SELECT m.id, m.seq, m.topic, m.key, m.bytes, d.reason, d.found FROM damaged d "
            "JOIN messages m ON m.id = d.id WHERE m.seq > ? ORDER BY m.seq LIMIT ?",
            (after, limit),
        )
        return [
            Damage(name, seq, topic, key, size, reason, datetime.fromtimestamp(found, UTC))
            for name, seq, topic, key, size, reason, found in rows
        ]

    return query


def sizes(after: int, limit: int) -> Callable[[Connection], list[tuple[int, str, int, int | None]]]:
    """Messages by seq behind ``after``: seq, id, bytes, and the bytes of a body that is in the rows."""

    def query(connection: Connection) -> list[tuple[int, str, int, int | None]]:
        return connection.execute(
            "SELECT m.seq, m.id, m.bytes, length(b.data) FROM messages m LEFT JOIN bodies b ON b.seq = m.seq "
            "WHERE m.seq > ? ORDER BY m.seq LIMIT ?",
            (after, limit),
        ).fetchall()

    return query


def known(ids: Sequence[str]) -> Callable[[Connection], set[str]]:
    """Which of these ids are those of messages or uploads."""
    marks = ", ".join("?" * len(ids))

    def query(connection: Connection) -> set[str]:
        rows = connection.execute(
            f"SELECT id FROM messages WHERE id IN ({marks}) "
            f"UNION SELECT id FROM uploads WHERE id IN ({marks})",
            (*ids, *ids),
        )
        return {row[0] for row in rows}

    return query


def superseded(connection: Connection) -> list[str]:
    """Uploads whose idempotency key is stored: they were given up when that could not be written down.

    Not those that replace a damaged message.
    """
    rows = connection.execute(
        "SELECT uploads.id FROM uploads JOIN keys USING (topic, key) "
        "WHERE keys.id NOT IN (SELECT id FROM damaged)"
    )
    return [row[0] for row in rows]


def check(connection: Connection) -> list[str]:
    """What is wrong with the database, in SQLite's eyes and by its own rules; that may take long."""
    lines = connection.execute(f"PRAGMA integrity_check({_MOST_PROBLEMS})").fetchall()
    problems = [line for (line,) in lines if line != "ok"]
    for what, table, condition in _RULES:
        (count,) = connection.execute(f"SELECT count(*) FROM {table} WHERE {condition}").fetchone()
        if count:
            problems.append(f"{count} {what}")
    return problems
