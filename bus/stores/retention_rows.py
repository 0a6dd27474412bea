"""What retention asks of the rows and does to them: statements on an open connection, nothing else.

What a topic and an owner hold is counted by triggers in the tables ``usage`` and ``owners``, so that a limit
is looked up, not added up, and is right whoever lists or removes messages. Another trigger marks the key of
a removed message as ``gone``, so that keys to be forgotten are found without looking at the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from sqlite3 import Connection

from tensorbus.bus.quotas import over_bytes, over_messages, too_large
from tensorbus.errors import LimitExceeded, QuotaExceeded

from .values import Aged, Terms, Usage


def usage(connection: Connection) -> dict[str, Usage]:
    """What each topic holds."""
    rows = connection.execute("SELECT topic, messages, bytes FROM usage")
    return {topic: Usage(messages, size) for topic, messages, size in rows}


def first_sealed(connection: Connection) -> dict[str, float]:
    """When the first message of each topic was sealed."""
    rows = connection.execute(
        "SELECT topic, (SELECT sealed FROM messages WHERE messages.topic = usage.topic ORDER BY seq LIMIT 1) "
        "FROM usage"
    )
    return dict(rows)


def topic_usage(topic: str) -> Callable[[Connection], Usage]:
    """What one topic holds."""
    return _usage("SELECT messages, bytes FROM usage WHERE topic = ?", topic)


def owner_usage(owner: str) -> Callable[[Connection], Usage]:
    """What one owner has stored."""
    return _usage("SELECT messages, bytes FROM owners WHERE owner = ?", owner)


def _usage(statement: str, name: str) -> Callable[[Connection], Usage]:
    def query(connection: Connection) -> Usage:
        row: tuple[int, int] | None = connection.execute(statement, (name,)).fetchone()
        return Usage() if row is None else Usage(*row)

    return query


Refusal = QuotaExceeded | LimitExceeded


def over_terms(connection: Connection, topic: str, size: int, terms: Terms) -> Refusal | None:
    """Why ``size`` more bytes in a topic would be over ``terms``, if they would."""
    if terms.largest is not None and size > terms.largest:
        return too_large(terms.quota, size, terms.largest)
    if terms.owner is not None and terms.owner_bytes is not None:
        used = owner_usage(terms.owner)(connection).bytes
        if used + size > terms.owner_bytes:
            return over_bytes(f"token {terms.owner}", used, size, terms.owner_bytes)
    if terms.max_messages is None and terms.max_bytes is None:
        return None
    held = topic_usage(topic)(connection)
    if terms.max_messages is not None and held.messages >= terms.max_messages:
        return over_messages(terms.quota, held.messages, terms.max_messages)
    if terms.max_bytes is not None and held.bytes + size > terms.max_bytes:
        return over_bytes(terms.quota, held.bytes, size, terms.max_bytes)
    return None


def oldest(topic: str, limit: int) -> Callable[[Connection], list[Aged]]:
    """The first messages of a topic, by seq."""

    def query(connection: Connection) -> list[Aged]:
        rows = connection.execute(
            "SELECT id, bytes, sealed FROM messages WHERE topic = ? ORDER BY seq LIMIT ?", (topic, limit)
        )
        return [Aged(*row) for row in rows]

    return query


_CONCERNS_SOMEBODY = (
    "(messages.dead IS NULL OR EXISTS ("
    "SELECT 1 FROM consumers WHERE uid IN (SELECT value FROM json_each({uids})) "
    "AND name <> json_extract(messages.dead, '$.consumer') AND name NOT IN ("
    "SELECT json_extract(value, '$.consumer') FROM json_each(messages.dead, '$.earlier'))))"
)
"""Of a dead letter: one of the consumers is handed it, since it is not of those that it is the letter of.

Otherwise nobody has settled it but by failing, and it is the last that there is of the message.
"""


def settled_by_all(topic: str, consumers: Sequence[str], limit: int) -> Callable[[Connection], list[str]]:
    """Messages of a topic that each consumer has settled; see ``Store.settled_by_all``.

    Nothing beyond the least position is looked at, so the cost is that of what is found and of the
    deliveries that are pending, however many messages are waiting.
    """
    uids = json.dumps(list(consumers))

    def query(connection: Connection) -> list[str]:
        known, position = connection.execute(
            "SELECT count(*), min(position) FROM consumers WHERE uid IN (SELECT value FROM json_each(?))",
            (uids,),
        ).fetchone()
        if known < len(consumers):
            return []  # one was deleted just now; the next look is at those that are left
        rows = connection.execute(
            "SELECT id FROM messages WHERE topic = ?1 AND seq <= ?2 AND NOT EXISTS ("
            "SELECT 1 FROM deliveries WHERE message = messages.id AND settled = 0 "
            "AND consumer IN (SELECT value FROM json_each(?3))) "
            f"AND {_CONCERNS_SOMEBODY.format(uids='?3')} ORDER BY seq LIMIT ?4",
            (topic, 2**63 - 1 if position is None else position, uids, limit),
        )
        return [message_id for (message_id,) in rows]

    return query


def topics_of(message_ids: Sequence[str]) -> Callable[[Connection], dict[str, str]]:
    """The topics of those of the messages that are there."""
    wanted = json.dumps(list(message_ids))

    def query(connection: Connection) -> dict[str, str]:
        return dict(
            connection.execute(
                "SELECT id, topic FROM messages WHERE id IN (SELECT value FROM json_each(?))", (wanted,)
            )
        )

    return query


def settled_among(message_ids: Sequence[str], consumers: Sequence[str]) -> Callable[[Connection], list[str]]:
    """Which of the messages each consumer has settled; see ``Store.settled_among``."""
    values = (json.dumps(list(message_ids)), json.dumps(list(consumers)))

    def query(connection: Connection) -> list[str]:
        rows = connection.execute(
            "SELECT id FROM messages WHERE id IN (SELECT value FROM json_each(?1)) AND NOT EXISTS ("
            "SELECT 1 FROM consumers LEFT JOIN deliveries "
            "ON deliveries.consumer = consumers.uid AND deliveries.message = messages.id "
            "WHERE consumers.uid IN (SELECT value FROM json_each(?2)) "
            "AND NOT coalesce(deliveries.settled, consumers.position >= messages.seq)) "
            f"AND {_CONCERNS_SOMEBODY.format(uids='?2')} ORDER BY seq",
            values,
        )
        return [message_id for (message_id,) in rows]

    return query


def settled_by(message_id: str) -> Callable[[Connection], list[str]]:
    """The consumers that will not be handed a message (again); see ``Store.settled_by``."""

    def query(connection: Connection) -> list[str]:
        rows = connection.execute(
            "SELECT uid FROM messages CROSS JOIN consumers LEFT JOIN deliveries "
            "ON deliveries.consumer = consumers.uid AND deliveries.message = messages.id "
            "WHERE messages.id = ? AND coalesce(deliveries.settled, consumers.position >= messages.seq)",
            (message_id,),
        )
        return [uid for (uid,) in rows]

    return query


Removed = dict[str, bool]
"""Ids of removed messages, and whether they have frame files."""


def remove(message_ids: Sequence[str]) -> Callable[[Connection], Removed]:
    """Remove those of the messages that are there."""
    wanted = json.dumps(list(message_ids))

    def operation(connection: Connection) -> Removed:
        rows = connection.execute(
            f"SELECT {_GOING} FROM messages WHERE id IN (SELECT value FROM json_each(?))", (wanted,)
        )
        return _remove(connection, rows.fetchall())

    return operation


def make_room(
    topic: str, max_messages: int | None, max_bytes: int | None, limit: int
) -> Callable[[Connection], Removed]:
    """Remove the oldest messages of a topic that holds too much, up to ``limit`` of them.

    Counted and removed in one transaction, so that it is never more than necessary.
    """

    def operation(connection: Connection) -> Removed:
        held = topic_usage(topic)(connection)
        messages = held.messages - (held.messages if max_messages is None else max_messages)
        size = held.bytes - (held.bytes if max_bytes is None else max_bytes)
        going: list[tuple[int, str, int, int]] = []
        if messages > 0 or size > 0:
            for row in connection.execute(
                f"SELECT {_GOING} FROM messages WHERE topic = ? ORDER BY seq LIMIT ?", (topic, limit)
            ).fetchall():
                if messages <= 0 and size <= 0:
                    break
                going.append(row)
                messages, size = messages - 1, size - row[3]
        return _remove(connection, going)

    return operation


_GOING = "seq, id, NOT EXISTS (SELECT 1 FROM bodies WHERE bodies.seq = messages.seq), bytes"


def _remove(connection: Connection, rows: Sequence[tuple[int, str, int, int]]) -> Removed:
    """Triggers do the rest."""
    connection.executemany("DELETE FROM messages WHERE seq = ?", [row[:1] for row in rows])
    return {message_id: bool(has_file) for _, message_id, has_file, _ in rows}


def topics_with_old_keys(connection: Connection) -> dict[str, float]:
    """Topics with keys of messages that are gone, each with the time of the oldest."""
    found: dict[str, float] = {}
    topic = ""
    # One step of the index a topic; GROUP BY would go through all keys.
    while row := connection.execute(
        "SELECT topic, stored FROM keys WHERE gone = 1 AND topic > ? ORDER BY topic, stored LIMIT 1", (topic,)
    ).fetchone():
        topic = row[0]
        found[topic] = row[1]
    return found


def prune_keys(topic: str, before: float, limit: int) -> Callable[[Connection], int]:
    """Forget keys of a topic whose message is gone, oldest first."""

    def operation(connection: Connection) -> int:
        return connection.execute(
            "DELETE FROM keys WHERE (topic, key) IN (SELECT topic, key FROM keys "
            "WHERE gone = 1 AND topic = ? AND stored < ? ORDER BY stored LIMIT ?)",
            (topic, before, limit),
        ).rowcount

    return operation
