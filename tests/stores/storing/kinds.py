"""The kinds of stores that the suite of the broker runs on, each in the place of the embedded one."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tensorbus.bus.stores.base import Store
from tensorbus.bus.stores.jetstream import JetStreamSettings, JetStreamStore
from tensorbus.bus.stores.memory import Memory, MemoryStore

from .servers import NatsServers

KINDS = ("file", "memory", "jetstream", "cluster")
"""The embedded store; one in memory; JetStream on one server; on three of them, with three replicas."""


class Stores:
    """Makes stores of one kind for one test: as with directories, the same path is the same store again."""

    def __init__(self, servers: NatsServers | None) -> None:
        self._servers = servers
        self._memories: dict[Path, Memory] = {}
        self._names: set[str] = set()

    def make(self, path: Path, reserve_bytes: int = 0) -> Store:
        """A store in the place of a `FileStore` of this path; the path is there for what else is kept."""
        del reserve_bytes
        path.mkdir(parents=True, exist_ok=True)
        if self._servers is None:
            return _MemoryAt(path, self._memories.setdefault(path, Memory()))
        name = "t" + hashlib.sha256(str(path).encode()).hexdigest()[:16]
        self._names.add(name)
        return _JetStreamAt(path, JetStreamSettings.parse(f"{self._servers.address}&name={name}"))

    def close(self) -> None:
        """Remove what was stored."""
        if self._servers is not None:
            for name in self._names:
                self._servers.forget(name)


class _MemoryAt(MemoryStore):
    def __init__(self, path: Path, memory: Memory) -> None:
        super().__init__(memory)
        self.path = path


class _JetStreamAt(JetStreamStore):
    def __init__(self, path: Path, settings: JetStreamSettings) -> None:
        super().__init__(settings)
        self.path = path
