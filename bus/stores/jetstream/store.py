"""The store of a JetStream."""

from __future__ import annotations

import asyncio

from tensorbus.bus.stores.replicated import ReplicatedStore

from .frames import StreamPieces
from .link import Link
from .log import StreamLog
from .settings import JetStreamSettings


class JetStreamStore(ReplicatedStore):
    """Messages in NATS JetStream. It can be started once; a broker that is started again makes another.

    Args:
        stand_by: see `ReplicatedStore`.
    """

    kind = "jetstream"

    def __init__(self, settings: JetStreamSettings, *, stand_by: bool = False) -> None:
        link = self._link = Link(settings)
        pieces = StreamPieces(link)
        self._settings = settings
        super().__init__(StreamLog(link, pieces), pieces, str(settings), stand_by=stand_by)

    async def log_length(self) -> int:
        """Records in the log. Raises StorageError."""
        return await self._count("log")

    async def stored_pieces(self) -> int:
        """Pieces of frames, those of snapshots among them. Raises StorageError."""
        return await self._count("frames")

    async def _count(self, stream: str) -> int:
        asking = self._link.api(f"STREAM.INFO.{self._settings.name}_{stream}")
        return int((await asyncio.wrap_future(self._link.call(asking)))["state"]["messages"])
