"""Rows about consumers, and the rows of their deliveries: statements on an open connection, nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from sqlite3 import Connection

from tensorbus.bus.consumers import ConsumerConfig, Start

from .values import StoredConsumer, StoredDelivery

_PUT = (
    "INSERT OR REPLACE INTO deliveries (consumer, message, seq, attempt, due, settled, returned) "
    "SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7 WHERE EXISTS (SELECT 1 FROM consumers WHERE uid = ?1) "
    "AND EXISTS (SELECT 1 FROM messages WHERE id = ?2)"
)


def consumers(connection: Connection) -> list[StoredConsumer]:
    """Every consumer with its deliveries."""
    deliveries: dict[str, list[StoredDelivery]] = {}
    for uid, message, seq, attempt, due, settled, returned in connection.execute(
        "SELECT consumer, message, seq, attempt, due, settled, returned FROM deliveries ORDER BY seq"
    ):
        delivery = StoredDelivery(uid, message, seq, attempt, due, bool(settled), returned)
        deliveries.setdefault(uid, []).append(delivery)
    return [
        StoredConsumer(
            name=name,
            uid=uid,
            config=ConsumerConfig.from_json(json.loads(config)),
            position=position,
            created=datetime.fromtimestamp(created, UTC),
            deliveries=tuple(deliveries.get(uid, ())),
            owner=owner,
        )
        for name, uid, config, position, created, owner in connection.execute(
            "SELECT name, uid, config, position, created, owner FROM consumers ORDER BY name"
        )
    ]


def add(consumer: StoredConsumer) -> Callable[[Connection], StoredConsumer]:
    """Keep a new consumer; see ``Store.add_consumer``."""

    def operation(connection: Connection) -> StoredConsumer:
        stored = replace(consumer, position=_beginning(connection, consumer.config.start))
        connection.execute(
            "INSERT INTO consumers (name, uid, config, position, created, owner) VALUES (?, ?, ?, ?, ?, ?)",
            (
                stored.name,
                stored.uid,
                json.dumps(stored.config.to_json()),
                stored.position,
                stored.created.timestamp(),
                stored.owner,
            ),
        )
        return stored

    return operation


def _beginning(connection: Connection, start: Start) -> int:
    """The seq behind which a new consumer begins."""
    if start == "all":
        return 0
    if isinstance(start, int):
        return start - 1
    first: int | None = None
    if isinstance(start, datetime):
        (first,) = connection.execute(
            "SELECT min(seq) FROM messages WHERE sealed >= ?", (start.timestamp(),)
        ).fetchone()
    return last_seq(connection) if first is None else first - 1


def remove(uid: str) -> Callable[[Connection], None]:
    """Forget a consumer and its deliveries."""

    def operation(connection: Connection) -> None:
        connection.execute("DELETE FROM deliveries WHERE consumer = ?", (uid,))
        connection.execute("DELETE FROM consumers WHERE uid = ?", (uid,))

    return operation


def put_deliveries(
    connection: Connection, deliveries: Sequence[StoredDelivery], seq: int | None = None
) -> None:
    """Write deliveries over what is there; ``seq`` is that of the message they all are of, if just given.

    A delivery whose consumer or message is gone meanwhile leaves no row.
    """
    connection.executemany(
        _PUT,
        [
            (d.consumer, d.message, seq or d.seq, d.attempt, d.due, int(d.settled), d.returned)
            for d in deliveries
        ],
    )


def advance(connection: Connection, uid: str, position: int) -> bool:
    """Note how far a consumer is; False if it is gone.

    Up to its position a consumer needs no marks of what is settled: nothing there is handed out anew.
    """
    there = connection.execute(
        "UPDATE consumers SET position = max(position, ?) WHERE uid = ?", (position, uid)
    ).rowcount
    connection.execute(
        "DELETE FROM deliveries WHERE consumer = ? AND settled = 1 AND seq <= ?", (uid, position)
    )
    return there > 0


def last_seq(connection: Connection) -> int:
    """The highest seq ever given to a message, 0 if none was."""
    row: tuple[int] | None = connection.execute(
        "SELECT seq FROM sqlite_sequence WHERE name = 'messages'"
    ).fetchone()
    return 0 if row is None else row[0]
