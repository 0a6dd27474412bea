"""Handing over and settling, each in one transaction: statements on an open connection, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from sqlite3 import Connection

from .consumer_rows import advance, last_seq, put_deliveries
from .message_rows import COLUMNS, PAGE_BYTES, Row, to_info, weight, where
from .values import HandedOver, HandOver, StoredDelivery, StoredMessage

MAX_INLINE_TOTAL = 512 << 10
"""Bytes of frames that one pull gets along with its deliveries."""

_FRAMES = "CASE WHEN bytes <= ? THEN (SELECT data FROM bodies WHERE bodies.seq = messages.seq) END"


class _Inline:
    """Makes messages of rows, and lets frames go along while there is room for them."""

    def __init__(self) -> None:
        self._room = MAX_INLINE_TOTAL

    def message(self, row: Row) -> StoredMessage:
        frames: bytes | None = row[-1]
        if frames is None or len(frames) > self._room:
            return StoredMessage(to_info(row))
        self._room -= len(frames)
        return StoredMessage(to_info(row), frames)


def take(wanted: HandOver, damaged: Container[str]) -> Callable[[Connection], HandedOver]:
    """Hand messages to a consumer; see ``Store.take``."""

    def operation(connection: Connection) -> HandedOver:
        inline = _Inline()
        again = _again(connection, wanted, inline, damaged)
        noted = [row for row, message in zip(wanted.again, again, strict=False) if message is not None]
        new: list[StoredMessage] = []
        # What is due again fills an answer by itself: new messages come with the next one.
        position, more = wanted.position, wanted.limit > 0 and len(again) == len(wanted.again)
        while more and not new:
            # Again, where all that was found is passed over: the pull would wait though there is something.
            rows, position, more = _following(connection, wanted, position)
            for row in rows:
                message = inline.message(row)
                info = message.info
                if info.dead is not None and wanted.name in info.dead.consumers:
                    continue  # its own dead letter: it has had this message, and could not deal with it
                first = StoredDelivery(wanted.consumer, info.id, info.seq or 0, 1, wanted.due)
                if info.id in damaged:
                    # Kept for the case that its frames are restored: the position has passed it by then.
                    noted.append(replace(first, attempt=0))
                    continue
                noted.append(first)
                new.append(message)
        if noted:
            put_deliveries(connection, noted)
            if not advance(connection, wanted.consumer, position):
                return HandedOver((None,) * len(again), (), wanted.position)  # it was deleted just now
        looked = wanted.limit > 0 and len(again) == len(wanted.again) and not more
        return HandedOver(again, tuple(new), position, looked and position >= last_seq(connection))

    return operation


def _again(
    connection: Connection, wanted: HandOver, inline: _Inline, damaged: Container[str]
) -> tuple[StoredMessage | None, ...]:
    """As many of the messages that are handed over once more, from the first on, as fit an answer."""
    found: list[StoredMessage | None] = []
    room = PAGE_BYTES
    for delivery in wanted.again:
        if room <= 0:
            break
        row: Row | None = None
        if delivery.message not in damaged:
            row = connection.execute(
                f"SELECT {COLUMNS}, {_FRAMES} FROM messages WHERE id = ?", (wanted.inline, delivery.message)
            ).fetchone()
        found.append(None if row is None else inline.message(row))
        room -= 0 if row is None else weight(row)
    return tuple(found)


def _following(connection: Connection, wanted: HandOver, position: int) -> tuple[list[Row], int, bool]:
    """The next messages behind a seq that were never handed over, up to which seq that is all of them, and
    whether it was looked no further since these are enough for one answer."""
    condition, values = where(wanted.filter)
    end = min(last_seq(connection), wanted.position + wanted.window)
    rows: list[Row] = []
    room = PAGE_BYTES
    for row in connection.execute(
        f"SELECT {COLUMNS}, {_FRAMES} FROM messages WHERE seq > ? AND seq <= ? AND {condition} "
        "AND NOT EXISTS (SELECT 1 FROM deliveries WHERE consumer = ? AND message = messages.id) "
        "ORDER BY seq LIMIT ?",
        (wanted.inline, position, end, *values, wanted.consumer, wanted.limit),
    ):
        rows.append(row)
        room -= weight(row)
        if len(rows) == wanted.limit or room <= 0:
            return rows, row[0], True
    return rows, max(position, end), False


def note(deliveries: Sequence[StoredDelivery]) -> Callable[[Connection], None]:
    """Write deliveries over what is there."""

    def operation(connection: Connection) -> None:
        put_deliveries(connection, deliveries)

    return operation


def settle(uid: str, position: int, deliveries: Sequence[StoredDelivery]) -> Callable[[Connection], None]:
    """Deliveries are settled for good; see ``Store.settle``."""
    passed = [(uid, delivery.message) for delivery in deliveries if delivery.seq <= position]
    ahead = [replace(delivery, settled=True) for delivery in deliveries if delivery.seq > position]

    def operation(connection: Connection) -> None:
        connection.executemany("DELETE FROM deliveries WHERE consumer = ? AND message = ?", passed)
        put_deliveries(connection, ahead)
        advance(connection, uid, position)

    return operation
