"""Messages whose frames are not what was stored: put aside when that is found, taken back when whole."""

from __future__ import annotations

import asyncio
import logging

from tensorbus.bus.clock import Clock
from tensorbus.bus.damage import DamagePage
from tensorbus.bus.measures import Measures
from tensorbus.bus.stores.base import Store
from tensorbus.errors import StorageError

from .consumers import Consumers
from .workers import Workers

_log = logging.getLogger("tensorbus.broker")


class Damaged:
    """What to do about damage, whoever finds it: a reader, somebody who opens a message, or a scrub.

    A damaged message is not delivered and holds up nobody; its deliveries wait until it is restored or
    deleted.
    """

    def __init__(
        self, store: Store, consumers: Consumers, workers: Workers, clock: Clock, measures: Measures
    ) -> None:
        self._store = store
        self._consumers = consumers
        self._workers = workers
        self._clock = clock
        self._measures = measures
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """The broker's event loop is the one that runs now."""
        self._loop = asyncio.get_running_loop()

    def found(self, message_id: str, reason: str) -> None:
        """Damage was found by a worker thread: it is dealt with on the event loop, soon."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._deal_with, message_id, reason)

    def _deal_with(self, message_id: str, reason: str) -> None:
        self._workers.start(self.put_aside(message_id, reason))

    async def put_aside(self, message_id: str, reason: str) -> bool:
        """Deliver a sealed message no more; True if it was not known to be damaged. Does not raise."""
        try:
            fresh = await self._store.quarantine(message_id, reason, self._clock.wall())
        except StorageError as problem:
            # It is not delivered by this process, and found again by the next one.
            fresh = True
            _log.warning("that message %s is damaged could not be written down: %s", message_id, problem)
        if not fresh:
            return False
        self._measures.damaged += 1
        self._consumers.dropped(message_id)
        _log.error("message %s is damaged: %s; it is not delivered any more", message_id, reason)
        try:
            await self._workers.sync(self._store.put_aside, message_id)
        except StorageError as problem:
            _log.warning("its file stays where it is: %s", problem)
        return True

    async def restore(self, message_id: str, *, in_place: bool) -> None:
        """A message was found to be whole again: whoever has not settled it gets it. Raises StorageError.

        ``in_place`` says that somebody has put its file back; else the one that was put aside is whole.
        """
        waiting = await self._store.restore(message_id, in_place=in_place)
        self._consumers.restored(waiting)
        _log.warning("message %s is whole again; it is delivered to whoever has not had it", message_id)

    async def page(self, after: int, limit: int) -> DamagePage:
        """Damaged messages by seq, behind ``after``. Raises StorageError."""
        found = await self._store.damages(after, limit + 1)
        page = tuple(found[:limit])
        return DamagePage(page, page[-1].seq if len(found) > limit else None)
