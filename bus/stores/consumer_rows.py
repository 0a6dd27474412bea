"""Rows about consumers and deliveries: statements on an open connection, nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from sqlite3 import Connection

from tensorbus.bus.consumers import ConsumerConfig

from .base import StoredConsumer, StoredDelivery


def consumers(connection: Connection) -> list[StoredConsumer]:
    """Every consumer with its deliveries."""
    deliveries: dict[str, list[StoredDelivery]] = {}
    for uid, message, seq, attempt, due, settled in connection.execute(
        "SELECT consumer, message, seq, attempt, due, settled FROM deliveries ORDER BY seq"
    ):
        deliveries.setdefault(uid, []).append(StoredDelivery(uid, message, seq, attempt, due, bool(settled)))
    return [
        StoredConsumer(
            name=name,
            uid=uid,
            config=ConsumerConfig.from_json(json.loads(config)),
            position=position,
            created=datetime.fromtimestamp(created, UTC),
            deliveries=tuple(deliveries.get(uid, ())),
        )
        for name, uid, config, position, created in connection.execute(
            "SELECT name, uid, config, position, created FROM consumers ORDER BY name"
        )
    ]


def add(consumer: StoredConsumer) -> Callable[[Connection], StoredConsumer]:
    """Keep a new consumer; see ``Store.add_consumer``."""

    def operation(connection: Connection) -> StoredConsumer:
        stored = consumer
        if consumer.config.start == "new":
            stored = replace(consumer, position=last_seq(connection))
        connection.execute(
            "INSERT INTO consumers (name, uid, config, position, created) VALUES (?, ?, ?, ?, ?)",
            (
                stored.name,
                stored.uid,
                json.dumps(stored.config.to_json()),
                stored.position,
                stored.created.timestamp(),
            ),
        )
        return stored

    return operation


def remove(uid: str) -> Callable[[Connection], None]:
    """Forget a consumer and its deliveries."""

    def operation(connection: Connection) -> None:
        connection.execute("DELETE FROM deliveries WHERE consumer = ?", (uid,))
        connection.execute("DELETE FROM consumers WHERE uid = ?", (uid,))

    return operation


def hand_over(uid: str, position: int, deliveries: Sequence[StoredDelivery]) -> Callable[[Connection], None]:
    """Note deliveries and the consumer's position."""

    def operation(connection: Connection) -> None:
        put_deliveries(connection, deliveries)
        _advance(connection, uid, position)

    return operation


def settle(uid: str, position: int, delivery: StoredDelivery) -> Callable[[Connection], None]:
    """A delivery is settled for good."""

    def operation(connection: Connection) -> None:
        put_deliveries(connection, [replace(delivery, settled=True)])
        _advance(connection, uid, position)

    return operation


def put_deliveries(
    connection: Connection, deliveries: Sequence[StoredDelivery], seq: int | None = None
) -> None:
    """Write deliveries over what is there; ``seq`` is that of the message they all are of, if just given.

    A delivery whose consumer or message is gone meanwhile leaves no row.
    """
    connection.executemany(
        "INSERT OR REPLACE INTO deliveries (consumer, message, seq, attempt, due, settled) "
        "SELECT ?1, ?2, ?3, ?4, ?5, ?6 WHERE EXISTS (SELECT 1 FROM consumers WHERE uid = ?1) "
        "AND EXISTS (SELECT 1 FROM messages WHERE id = ?2)",
        [(d.consumer, d.message, seq or d.seq, d.attempt, d.due, int(d.settled)) for d in deliveries],
    )


def _advance(connection: Connection, uid: str, position: int) -> None:
    """Up to its position a consumer needs no marks of what is settled: nothing there is handed out anew."""
    connection.execute("UPDATE consumers SET position = max(position, ?) WHERE uid = ?", (position, uid))
    connection.execute(
        "DELETE FROM deliveries WHERE consumer = ? AND settled = 1 AND seq <= ?", (uid, position)
    )


def last_seq(connection: Connection) -> int:
    """The highest seq ever given to a message, 0 if none was."""
    row: tuple[int] | None = connection.execute(
        "SELECT seq FROM sqlite_sequence WHERE name = 'messages'"
    ).fetchone()
    return 0 if row is None else row[0]
