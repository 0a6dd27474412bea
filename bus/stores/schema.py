"""The tables of the metadata file, and the number of their format.

Whoever changes a table or a trigger gives the format a new number, and says in ``prepare`` how a file of
the one before becomes one of it; tests/golden/stores has a data directory of each format that was released.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from functools import cache
from pathlib import Path

from tensorbus.errors import StoreVersion

VERSION = 2
"""``PRAGMA user_version`` of the files that this release writes."""

_SCHEMA = """
CREATE TABLE messages (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    topic TEXT NOT NULL,
    key TEXT,
    bytes INTEGER NOT NULL,
    frames INTEGER NOT NULL,
    headers TEXT NOT NULL,
    container TEXT NOT NULL,
    pipeline TEXT NOT NULL,
    items INTEGER,
    original_bytes INTEGER,
    wire_bytes INTEGER,
    digest TEXT NOT NULL,
    created REAL NOT NULL,
    sealed REAL NOT NULL,
    owner TEXT,
    dead TEXT
);
CREATE INDEX messages_by_topic ON messages (topic, seq);
CREATE INDEX messages_by_time ON messages (sealed);
CREATE INDEX messages_that_are_dead ON messages (seq) WHERE dead IS NOT NULL;
CREATE TABLE bodies (
    seq INTEGER PRIMARY KEY,
    data BLOB NOT NULL
);
CREATE TABLE usage (
    topic TEXT PRIMARY KEY,
    messages INTEGER NOT NULL,
    bytes INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE owners (
    owner TEXT PRIMARY KEY,
    messages INTEGER NOT NULL,
    bytes INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE keys (
    topic TEXT NOT NULL,
    key TEXT NOT NULL,
    id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    frames INTEGER NOT NULL,
    digest TEXT NOT NULL,
    stored REAL NOT NULL,
    gone INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (topic, key)
) WITHOUT ROWID;
CREATE INDEX keys_of_the_gone ON keys (topic, stored) WHERE gone = 1;
CREATE TABLE uploads (
    id TEXT PRIMARY KEY,
    topic TEXT NOT NULL,
    key TEXT,
    length INTEGER,
    metadata TEXT NOT NULL,
    owner TEXT,
    created REAL NOT NULL,
    expires REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE policies (
    name TEXT PRIMARY KEY,
    config TEXT NOT NULL,
    created REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE damaged (
    id TEXT PRIMARY KEY,
    reason TEXT NOT NULL,
    found REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE consumers (
    name TEXT PRIMARY KEY,
    uid TEXT NOT NULL UNIQUE,
    config TEXT NOT NULL,
    position INTEGER NOT NULL,
    created REAL NOT NULL,
    owner TEXT
) WITHOUT ROWID;
CREATE TABLE deliveries (
    consumer TEXT NOT NULL,
    message TEXT NOT NULL,
    seq INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    due REAL NOT NULL,
    settled INTEGER NOT NULL,
    returned INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (consumer, message)
) WITHOUT ROWID;
CREATE INDEX deliveries_by_message ON deliveries (message);
CREATE INDEX deliveries_ahead ON deliveries (consumer, seq) WHERE settled = 1;
CREATE TRIGGER message_listed AFTER INSERT ON messages BEGIN
    INSERT INTO usage (topic, messages, bytes) VALUES (new.topic, 1, new.bytes)
        ON CONFLICT (topic) DO UPDATE SET messages = messages + 1, bytes = bytes + excluded.bytes;
    INSERT INTO owners (owner, messages, bytes) SELECT new.owner, 1, new.bytes
        WHERE new.owner IS NOT NULL AND new.dead IS NULL
        ON CONFLICT (owner) DO UPDATE SET messages = messages + 1, bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER message_removed AFTER DELETE ON messages BEGIN
    DELETE FROM bodies WHERE seq = old.seq;
    DELETE FROM deliveries WHERE message = old.id;
    DELETE FROM damaged WHERE id = old.id;
    UPDATE keys SET gone = 1 WHERE topic = old.topic AND key = old.key AND id = old.id;
    UPDATE usage SET messages = messages - 1, bytes = bytes - old.bytes WHERE topic = old.topic;
    DELETE FROM usage WHERE topic = old.topic AND messages = 0;
    UPDATE owners SET messages = messages - 1, bytes = bytes - old.bytes
        WHERE owner = old.owner AND old.dead IS NULL;
    DELETE FROM owners WHERE owner = old.owner AND messages = 0;
END;
"""


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Check the format of the file at ``path``, and make the tables if it is new.

    Raises:
        StoreVersion: another release has written it; it is left as it is.
        sqlite3.Error: it is no database, or cannot be read or written.
    """
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise StoreVersion(
            f"{path} was written by a newer release (format {version}, this one knows "
            f"{VERSION}); use that release, or another data directory"
        )
    if 0 < version < VERSION:
        raise StoreVersion(
            f"{path} was written by an older release (format {version}, this one needs "
            f"{VERSION}); fetch the messages with that release, or use another data directory"
        )
    if version == VERSION and (other := sorted(_tables().items() - _tables_of(connection).items())):
        raise StoreVersion(
            f"{path} says that it is of format {VERSION}, but {other[0][0]} is not as that format has it: a "
            "build between two releases has written it; fetch the messages with that build, or use another "
            "data directory"
        )
    if version == 0:
        # Free pages can be given back; this can only be said while the file is empty.
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    if version == 0:
        connection.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version = {VERSION};COMMIT;")


@cache
def _tables() -> dict[str, str]:
    """Tables and triggers of this release, by name: the statement that makes each."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(_SCHEMA)
        return _tables_of(connection)


def _tables_of(connection: sqlite3.Connection) -> dict[str, str]:
    # An index that is not as it should be is damage, which a scrub names.
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE type IN ('table', 'trigger')")
    return {str(name): " ".join(str(sql).split()) for name, sql in rows}
