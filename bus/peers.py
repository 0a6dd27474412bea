"""Peers: what the brokers of a store tell each other of themselves, for whoever watches any of them.

Strategy. Each says once a second how it is, to all at once, and nobody answers; nothing is stored. One that
is not heard of for some seconds is away, and after a minute forgotten; one that ends says so.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from tensorbus.errors import TensorbusError

from .activity import Moving
from .fields import Fields
from .stores.replicated import ReplicatedStore

EVERY = 1.0
"""Seconds between two words."""
AWAY = 3.5
"""Seconds without a word after which a broker is taken for away."""
FORGOTTEN = 60.0
"""Seconds without a word after which it is not shown any more."""
MAX_PEERS = 64
"""Brokers that are kept in mind."""
MAX_MOVING = 50
"""Transfers that a broker tells of."""


@dataclass(frozen=True, slots=True)
class Doing:
    """What a server knows of itself.

    Attributes:
        version: of the software. started: seconds since the epoch.
        uploads, downloads: requests that are under way.
        received, sent: bytes since the start, each counted by the broker that has the client.
        moving: some of the transfers.
    """

    version: str
    started: float
    uploads: int
    downloads: int
    received: int
    sent: int
    moving: Sequence[Moving]


@dataclass(frozen=True, slots=True)
class Peer:
    """A broker of the store.

    Attributes:
        id: of this run of it. url: where the others reach it.
        leads: whether it decides.
        behind: records of the log that it has not applied yet; None where it cannot find out.
        heard: when, in seconds of this process's monotonic clock.
    """

    id: str
    url: str
    leads: bool
    behind: int | None
    doing: Doing
    heard: float

    def to_json(self) -> dict[str, object]:
        """As it is told."""
        doing = self.doing
        return {
            "id": self.id,
            "url": self.url,
            "leads": self.leads,
            "behind": self.behind,
            "version": doing.version,
            "started": doing.started,
            "uploads": doing.uploads,
            "downloads": doing.downloads,
            "received": doing.received,
            "sent": doing.sent,
            "moving": [each.to_json() for each in doing.moving[:MAX_MOVING]],
        }

    @classmethod
    def from_json(cls, document: object) -> Peer:
        """What another one has told now. Raises InvalidRequest."""
        got = Fields(document, "broker")
        doing = Doing(
            got.text("version"),
            got.number("started", 0, 1e12),
            got.integer("uploads"),
            got.integer("downloads"),
            got.integer("received"),
            got.integer("sent"),
            tuple(Moving.from_json(each) for each in got.array("moving")[:MAX_MOVING]),
        )
        behind = got.integer_or_none("behind")
        return cls(got.text("id"), got.text("url"), got.flag("leads"), behind, doing, time.monotonic())


class Peers:
    """The brokers of one store, as one of them knows them.

    Args:
        store: this one's.

    Attributes:
        own: this one, as it said last; None before it has.
    """

    def __init__(self, store: ReplicatedStore) -> None:
        self._store = store
        self._others: dict[str, Peer] = {}
        self._describe: Callable[[], Doing] | None = None
        self.own: Peer | None = None

    @property
    def kind(self) -> str:
        """Of the store."""
        return self._store.kind

    @property
    def connected(self) -> bool:
        """Whether the store's servers can be reached."""
        return self._store.log.connected

    @property
    def activity(self) -> int:
        """Another number than before if another broker has done something."""
        return sum(
            each.doing.received + each.doing.sent + len(each.doing.moving) + each.leads + 1
            for each in self._others.values()
        )

    def describe_by(self, describe: Callable[[], Doing]) -> None:
        """What this one tells of itself from now on."""
        self._describe = describe

    def others(self) -> list[Peer]:
        """The other ones by address, those that are away among them."""
        now = time.monotonic()
        self._others = {name: each for name, each in self._others.items() if now - each.heard < FORGOTTEN}
        there = {each.url for each in self._others.values() if now - each.heard < AWAY}
        if self.own is not None:
            there.add(self.own.url)
        # A broker that was started again is another one at the same address.
        found = [each for each in self._others.values() if now - each.heard < AWAY or each.url not in there]
        return sorted(found, key=lambda each: each.url)

    async def behind(self) -> int | None:
        """Records of the log that this broker has not applied; None if that cannot be found out."""
        with suppress(TensorbusError, TimeoutError):
            async with asyncio.timeout(EVERY):
                return await self._store.log.behind()
        return None

    @asynccontextmanager
    async def telling(self, url: str) -> AsyncGenerator[None]:
        """Tell and listen within the block; ``url`` is where the others reach this one."""
        await self._store.log.listen(self._heard)
        task = asyncio.create_task(self._tell(url), name="tensorbus-peers")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            with suppress(TensorbusError, TimeoutError):
                async with asyncio.timeout(EVERY):
                    await self._store.log.tell(json.dumps({"left": self._store.writer}).encode())

    async def _tell(self, url: str) -> None:
        while True:
            if self._describe is not None:
                leads, behind = self._store.leading, await self.behind()
                self.own = Peer(self._store.writer, url, leads, behind, self._describe(), time.monotonic())
                if self.connected:  # what waits for a connection would be old when it comes
                    with suppress(TensorbusError):
                        await self._store.log.tell(json.dumps(self.own.to_json()).encode())
            await asyncio.sleep(EVERY)

    def _heard(self, word: bytes) -> None:
        """Of another release, it may be anything."""
        with suppress(TensorbusError, ValueError):
            got = Fields(json.loads(word), "broker")
            if (left := got.text_or_none("left")) is not None:
                self._others.pop(left, None)
                return
            peer = Peer.from_json(got.document)
            if peer.id != self._store.writer and (peer.id in self._others or len(self._others) < MAX_PEERS):
                self._others[peer.id] = peer
