"""Dead letters: messages listed anew together with a settlement. Statements on an open connection."""

from __future__ import annotations

import json
from collections.abc import Callable
from sqlite3 import Connection

from tensorbus.bus.messages import MessageInfo

from .consumer_rows import put_deliveries
from .delivery_rows import settle
from .message_rows import message
from .values import Copy, StoredDelivery

_KEPT = (
    "bytes, frames, headers, container, pipeline, items, original_bytes, wire_bytes, digest, created, owner"
)
_COPY = (
    f"INSERT INTO messages (id, topic, key, sealed, dead, {_KEPT}) "
    f"SELECT ?, ?, ?, ?, ?, {_KEPT} FROM messages WHERE id = ?"
)
_COPY_BODY = (
    "INSERT INTO bodies (seq, data) "
    "SELECT ?, data FROM bodies WHERE seq = (SELECT seq FROM messages WHERE id = ?)"
)


def bury(
    uid: str, position: int, delivery: StoredDelivery, letter: Copy, linked: bool
) -> Callable[[Connection], MessageInfo | None]:
    """Settle a delivery and list its letter; see ``Store.bury``. ``linked``: its frames are in a file."""
    settling = settle(uid, position, [delivery])

    def operation(connection: Connection) -> MessageInfo | None:
        settling(connection)
        return _copy(connection, letter, linked)

    return operation


def replay(again: Copy, linked: bool) -> Callable[[Connection], MessageInfo | None]:
    """List a letter's message and remove the letter; see ``Store.replay``."""

    def operation(connection: Connection) -> MessageInfo | None:
        info = _copy(connection, again, linked)
        if info is not None:
            connection.execute("DELETE FROM messages WHERE id = ?", (again.source,))
            settled = [StoredDelivery(uid, again.id, 0, 0, 0.0, settled=True) for uid in again.settled_for]
            put_deliveries(connection, settled, info.seq)
        return info

    return operation


def _copy(connection: Connection, copy: Copy, linked: bool) -> MessageInfo | None:
    """None if there is no such message, or neither a file nor a row holds its frames."""
    dead = None if copy.dead is None else json.dumps(copy.dead.to_json())
    cursor = connection.execute(_COPY, (copy.id, copy.topic, copy.key, copy.sealed, dead, copy.source))
    if not cursor.rowcount:
        return None
    if not linked and not connection.execute(_COPY_BODY, (cursor.lastrowid, copy.source)).rowcount:
        connection.execute("DELETE FROM messages WHERE id = ?", (copy.id,))
        return None
    return message(copy.id)(connection)
