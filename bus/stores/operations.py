"""What each command of a shared log does to the rows: statements on an open connection, nothing else.

Every broker runs every command, in the order of the log, and must come to the same rows. So an operation
looks at nothing but its arguments and the rows: no clock, no file, no random number, no state of a process.
Whatever a command should know of these, who writes it puts into its arguments.

The rows are those of the embedded store, and a few more:

    places      in whose run of frames the frames of a message are: a dead letter shares those of its message
    garbage     runs of frames that no message has any more
    begun       runs of frames that a broker is writing, until the message is listed or has a row as an upload
    writers     how many records of each broker were done
    state       one row: how far in the log this is, and which broker is in the lead
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from sqlite3 import Connection
from typing import Any

from tensorbus.bus.messages import MessageInfo, Receipt
from tensorbus.errors import LimitExceeded, QuotaExceeded

from . import (
    consumer_rows,
    damage_rows,
    dead_rows,
    delivery_rows,
    message_rows,
    policy_rows,
    retention_rows,
    upload_rows,
)
from .values import (
    Copy,
    HandedOver,
    HandOver,
    Listing,
    StoredConsumer,
    StoredDelivery,
    StoredPolicy,
    StoredUpload,
    Terms,
)

Operation = Callable[..., Any]
"""Takes the connection, the id of the broker whose command it is, and the command's arguments."""

TABLES = (
    "CREATE TABLE IF NOT EXISTS places (id TEXT PRIMARY KEY, run TEXT NOT NULL) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS places_by_run ON places (run)",
    "CREATE TABLE IF NOT EXISTS garbage (run TEXT PRIMARY KEY) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS begun (run TEXT PRIMARY KEY, writer TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS writers (writer TEXT PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS state (one INTEGER PRIMARY KEY CHECK (one = 1), "
    "seq INTEGER NOT NULL, leader TEXT NOT NULL, term INTEGER NOT NULL)",
    "INSERT OR IGNORE INTO state (one, seq, leader, term) VALUES (1, 0, '', 0)",
    "CREATE TRIGGER IF NOT EXISTS message_gone AFTER DELETE ON messages BEGIN "
    "INSERT OR IGNORE INTO garbage (run) SELECT run FROM places WHERE id = old.id "
    "AND NOT EXISTS (SELECT 1 FROM places AS others WHERE others.run = places.run AND others.id <> old.id); "
    "DELETE FROM places WHERE id = old.id; END",
)


class Damaged:
    """Ids of damaged messages, as the rows tell."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __contains__(self, message_id: object) -> bool:
        return damage_rows.is_damaged(self._connection, str(message_id))


# --- messages ----------------------------------------------------------------------------------------


def _seal(
    connection: Connection,
    _writer: str,
    info: MessageInfo,
    followers: Sequence[StoredDelivery],
    body: bytes | None,
    terms: Terms,
) -> Receipt | QuotaExceeded | LimitExceeded:
    upload = connection.execute("SELECT writer FROM begun WHERE run = ?", (info.id,)).fetchone()
    outcome = message_rows.seal(info, followers, body, terms)(connection)
    if isinstance(outcome, Receipt) and outcome.id == info.id:
        if body is None:
            connection.execute("INSERT OR REPLACE INTO places (id, run) VALUES (?1, ?1)", (info.id,))
        elif upload is not None:
            connection.execute("INSERT OR IGNORE INTO garbage (run) VALUES (?)", (info.id,))
        connection.execute("DELETE FROM begun WHERE run = ?", (info.id,))
    return outcome


def _seal_all(
    connection: Connection, writer: str, listings: Sequence[Listing]
) -> list[Receipt | QuotaExceeded | LimitExceeded]:
    return [_seal(connection, writer, each.info, (), each.body, each.terms) for each in listings]


def _remove(connection: Connection, _writer: str, message_ids: Sequence[str]) -> list[str]:
    return list(retention_rows.remove(message_ids)(connection))


def _make_room(
    connection: Connection,
    _writer: str,
    topic: str,
    max_messages: int | None,
    max_bytes: int | None,
    limit: int,
) -> list[str]:
    return list(retention_rows.make_room(topic, max_messages, max_bytes, limit)(connection))


# --- uploads and their frames ------------------------------------------------------------------------


def _begin_run(connection: Connection, writer: str, run: str) -> None:
    connection.execute("INSERT OR IGNORE INTO begun (run, writer) VALUES (?, ?)", (run, writer))


def _drop_runs(connection: Connection, _writer: str, runs: Sequence[str]) -> None:
    """Runs of frames that became no message."""
    for run in runs:
        if connection.execute("DELETE FROM begun WHERE run = ?", (run,)).rowcount:
            connection.execute("INSERT OR IGNORE INTO garbage (run) VALUES (?)", (run,))


def _cleared(connection: Connection, _writer: str, runs: Sequence[str]) -> None:
    """The frames of these runs have been removed."""
    connection.executemany("DELETE FROM garbage WHERE run = ?", [(run,) for run in runs])


def _add_upload(connection: Connection, _writer: str, upload: StoredUpload) -> None:
    upload_rows.add(upload)(connection)


def _touch_upload(
    connection: Connection, _writer: str, message_id: str, expires: float, length: int | None
) -> None:
    upload_rows.touch(message_id, expires, length)(connection)


def _delete_upload(connection: Connection, writer: str, message_id: str) -> bool:
    found = upload_rows.remove(message_id)(connection)
    if found:
        _drop_runs(connection, writer, [message_id])
    return found


# --- consumers ---------------------------------------------------------------------------------------


def _add_consumer(connection: Connection, _writer: str, consumer: StoredConsumer) -> StoredConsumer:
    return consumer_rows.add(consumer)(connection)


def _delete_consumer(connection: Connection, _writer: str, uid: str) -> None:
    consumer_rows.remove(uid)(connection)


def _take(connection: Connection, _writer: str, wanted: HandOver) -> HandedOver:
    return delivery_rows.take(wanted, Damaged(connection))(connection)


def _note(connection: Connection, _writer: str, deliveries: Sequence[StoredDelivery]) -> None:
    delivery_rows.note(deliveries)(connection)


def _settle(
    connection: Connection, _writer: str, uid: str, position: int, deliveries: Sequence[StoredDelivery]
) -> None:
    delivery_rows.settle(uid, position, deliveries)(connection)


def _bury(
    connection: Connection, _writer: str, uid: str, position: int, delivery: StoredDelivery, letter: Copy
) -> MessageInfo | None:
    shared = _share(connection, letter)
    info = dead_rows.bury(uid, position, delivery, letter, shared)(connection)
    return _shared(connection, letter, info)


def _replay(connection: Connection, _writer: str, again: Copy) -> MessageInfo | None:
    shared = _share(connection, again)
    return _shared(connection, again, dead_rows.replay(again, shared)(connection))


def _share(connection: Connection, copy: Copy) -> bool:
    """Let a copy have the frames of its source, if they are not in its row."""
    statement = "INSERT INTO places (id, run) SELECT ?, run FROM places WHERE id = ?"
    return connection.execute(statement, (copy.id, copy.source)).rowcount > 0


def _shared(connection: Connection, copy: Copy, info: MessageInfo | None) -> MessageInfo | None:
    if info is None:
        connection.execute("DELETE FROM places WHERE id = ?", (copy.id,))
    return info


# --- damage, policies, keys --------------------------------------------------------------------------


def _quarantine(connection: Connection, _writer: str, message_id: str, reason: str, found: float) -> bool:
    return bool(damage_rows.add([(message_id, reason)], found)(connection))


def _restore(connection: Connection, _writer: str, message_id: str) -> list[StoredDelivery]:
    return damage_rows.remove(message_id)(connection)


def _put_policy(connection: Connection, _writer: str, policy: StoredPolicy) -> None:
    policy_rows.put(policy)(connection)


def _delete_policy(connection: Connection, _writer: str, name: str) -> None:
    policy_rows.remove(name)(connection)


def _prune_keys(connection: Connection, _writer: str, topic: str, before: float, limit: int) -> int:
    return retention_rows.prune_keys(topic, before, limit)(connection)


# --- who is in the lead ------------------------------------------------------------------------------


def _lead(connection: Connection, writer: str, term: int) -> bool:
    """Take the lead from who had it in ``term``; False if somebody was faster.

    What others were writing, and no upload of theirs keeps, is given up: only who is in the lead writes.
    """
    statement = "UPDATE state SET leader = ?, term = term + 1 WHERE term = ?"
    if not connection.execute(statement, (writer, term)).rowcount:
        return False
    left = connection.execute(
        "SELECT run FROM begun WHERE writer <> ? AND run NOT IN (SELECT id FROM uploads)", (writer,)
    ).fetchall()
    _drop_runs(connection, writer, [run for (run,) in left])
    return True


OPERATIONS: Mapping[str, Operation] = {
    "seal": _seal,
    "seal_all": _seal_all,
    "remove": _remove,
    "make_room": _make_room,
    "begin_run": _begin_run,
    "drop_runs": _drop_runs,
    "cleared": _cleared,
    "add_upload": _add_upload,
    "touch_upload": _touch_upload,
    "delete_upload": _delete_upload,
    "add_consumer": _add_consumer,
    "delete_consumer": _delete_consumer,
    "take": _take,
    "note": _note,
    "settle": _settle,
    "bury": _bury,
    "replay": _replay,
    "quarantine": _quarantine,
    "restore": _restore,
    "put_policy": _put_policy,
    "delete_policy": _delete_policy,
    "prune_keys": _prune_keys,
    "lead": _lead,
}
