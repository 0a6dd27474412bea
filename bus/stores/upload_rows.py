"""Rows about uploads that survive a restart: statements on an open connection, nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from sqlite3 import Connection

from .values import StoredUpload


def add(upload: StoredUpload) -> Callable[[Connection], None]:
    """Keep a new upload."""
    values = (
        upload.id,
        upload.topic,
        upload.key,
        upload.length,
        json.dumps(dict(upload.metadata)),
        upload.owner,
        upload.created.timestamp(),
        upload.expires,
    )

    def operation(connection: Connection) -> None:
        connection.execute(
            "INSERT INTO uploads (id, topic, key, length, metadata, owner, created, expires) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            values,
        )

    return operation


def touch(message_id: str, expires: float, length: int | None) -> Callable[[Connection], None]:
    """Note when an upload may be removed, and its length."""

    def operation(connection: Connection) -> None:
        connection.execute(
            "UPDATE uploads SET expires = ?, length = coalesce(?, length) WHERE id = ?",
            (expires, length, message_id),
        )

    return operation


def remove(message_id: str) -> Callable[[Connection], bool]:
    """Forget an upload; False if it is not there."""

    def operation(connection: Connection) -> bool:
        return connection.execute("DELETE FROM uploads WHERE id = ?", (message_id,)).rowcount > 0

    return operation


def uploads(connection: Connection) -> list[StoredUpload]:
    """All uploads, in the order in which they were made."""
    return [
        StoredUpload(
            id=message_id,
            topic=topic,
            key=key,
            length=length,
            metadata=json.loads(metadata),
            owner=owner,
            created=datetime.fromtimestamp(created, UTC),
            expires=expires,
        )
        for message_id, topic, key, length, metadata, owner, created, expires in connection.execute(
            "SELECT id, topic, key, length, metadata, owner, created, expires FROM uploads "
            "ORDER BY created, id"
        )
    ]
