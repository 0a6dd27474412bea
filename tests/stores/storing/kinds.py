"""The kinds of stores that the suite of the broker runs on, each in the place of the embedded one."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from contextlib import AbstractAsyncContextManager, closing
from pathlib import Path
from sqlite3 import Connection

from tensorbus.bus.broker import BrokerSettings
from tensorbus.bus.server import ServerSettings
from tensorbus.bus.stores.base import Store
from tensorbus.bus.stores.jetstream import JetStreamSettings, JetStreamStore
from tensorbus.bus.stores.memory import Memory, MemoryStore
from tensorbus.bus.stores.replicated import ReplicatedStore

from .following import running_follower
from .servers import NatsServers

KINDS = ("file", "memory", "jetstream", "cluster", "follower")
"""The embedded store; one in memory; JetStream on one server; on three of them, with three replicas; and on
one server, with all requests sent to a broker that does not lead."""


class Stores:
    """Makes stores of one kind for one test: as with directories, the same path is the same store again."""

    def __init__(self, servers: NatsServers | None) -> None:
        self._servers = servers
        self._memories: dict[Path, Memory] = {}
        self._names: set[str] = set()
        self._running: dict[Path, _MemoryAt | _JetStreamAt] = {}

    def make(self, path: Path, reserve_bytes: int = 0) -> Store:
        """A store in the place of a `FileStore` of this path; the path is there for what else is kept."""
        del reserve_bytes
        path.mkdir(parents=True, exist_ok=True)
        store = self._running[path] = self._make(path)
        return store

    def _make(self, path: Path) -> _MemoryAt | _JetStreamAt:
        if self._servers is None:
            return _MemoryAt(path, self._memories.setdefault(path, Memory()))
        return _JetStreamAt(path, self._where(path))

    def run_follower(
        self, data: Path, limits: BrokerSettings | None = None, settings: ServerSettings | None = None
    ) -> AbstractAsyncContextManager[str]:
        """In the place of `running_broker`."""
        data.mkdir(parents=True, exist_ok=True)
        return running_follower(self._where(data), data, limits, settings)

    def _where(self, path: Path) -> JetStreamSettings:
        assert self._servers is not None
        name = "t" + hashlib.sha256(str(path).encode()).hexdigest()[:16]
        self._names.add(name)
        return JetStreamSettings.parse(f"{self._servers.address}&name={name}")

    async def kept(self, path: Path) -> set[str]:
        """Ids of the messages that the store at a path has frames of, when it has cleaned up."""
        store = self._running.get(path)
        if store is not None and not store.over.is_set():
            return await store.kept()
        store = self._make(path)  # that of the test is closed
        await store.start()
        try:
            return await store.kept()
        finally:
            await store.close()

    async def turn_bits(self, path: Path, message_id: str) -> None:
        """Spoil a message of the store at a path, which runs; the second time, mend it."""
        await self._running[path].turn_bits(message_id)

    def close(self) -> None:
        """Remove what was stored."""
        if self._servers is not None:
            for name in self._names:
                self._servers.forget(name)


class _Looked(ReplicatedStore):
    """A store of which one may ask what is in it."""

    async def kept(self) -> set[str]:
        """Ids of messages with frames."""
        await self.tidy()
        runs: set[str] = set()
        seen = 0
        while True:
            found, count = await asyncio.wrap_future(self._pieces.runs(seen))
            if not count:
                break
            runs |= set(found)
            seen += count
        runs -= await self.log.needs(runs)
        places = await self._read(_places)
        return {message for message, run in places if run in runs} | (runs - {run for _, run in places})

    async def turn_bits(self, message_id: str) -> None:
        """Other bytes in the frames of a message, wherever they are; the second time, those of before."""
        run = dict(await self._read(_places)).get(message_id)
        if run is None:
            with closing(sqlite3.connect(self._rows.path)) as rows, rows:
                turn_bits_of_body(rows, message_id)
            return
        found = await asyncio.wrap_future(self._pieces.get(run, 0, None))
        assert found is not None
        data, version = found
        await asyncio.wrap_future(self._pieces.put(run, 0, turned(data), version))


def turned(data: bytes) -> bytes:
    """Other bytes of the same length; of these, the first."""
    at = min(500, len(data) - 2)
    return data[:at] + bytes(byte ^ 0xFF for byte in data[at : at + 2]) + data[at + 2 :]


def turn_bits_of_body(rows: Connection, message_id: str) -> None:
    """Those of a small message, which lie with its row."""
    which = "seq = (SELECT seq FROM messages WHERE id = ?)"
    (data,) = rows.execute(f"SELECT data FROM bodies WHERE {which}", (message_id,)).fetchone()
    rows.execute(f"UPDATE bodies SET data = ? WHERE {which}", (turned(data), message_id))


def _places(connection: Connection) -> list[tuple[str, str]]:
    return connection.execute("SELECT id, run FROM places").fetchall()


class _MemoryAt(_Looked, MemoryStore):
    def __init__(self, path: Path, memory: Memory) -> None:
        super().__init__(memory)
        self.path = path


class _JetStreamAt(_Looked, JetStreamStore):
    def __init__(self, path: Path, settings: JetStreamSettings) -> None:
        super().__init__(settings)
        self.path = path
