"""Heartbeat: keeps the deliveries that somebody still holds from being handed to another worker."""

from __future__ import annotations

import asyncio
import logging
import weakref

from tensorbus.errors import Conflict, NotFound, TensorbusError

from .delivery import Delivery

log = logging.getLogger("tensorbus.client")

BEATS = 3
"""Heartbeats within one ``ack_wait``: one may be lost without harm."""


class Heartbeat:
    """Says ``in_progress`` for every delivery that is neither settled nor let go.

    Args:
        ack_wait: the consumer's, in seconds.
    """

    def __init__(self, ack_wait: float) -> None:
        self._interval = ack_wait / BEATS
        self._held: dict[str, weakref.ref[Delivery]] = {}
        self._task: asyncio.Task[None] | None = None

    def hold(self, delivery: Delivery) -> None:
        """Begin to speak for ``delivery``; it is held weakly, so letting it go is enough to end that."""
        self._held[delivery.token] = weakref.ref(delivery)
        if self._task is None:
            self._task = asyncio.create_task(self._beat(), name="tensorbus-heartbeat")

    def release(self, token: str) -> None:
        """The delivery has been settled."""
        self._held.pop(token, None)

    async def aclose(self) -> list[Delivery]:
        """Stop; returns the deliveries that are still held, unsettled."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        held = [delivery for reference in self._held.values() if (delivery := reference()) is not None]
        self._held.clear()
        return held

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            await asyncio.gather(*(self._speak_for(token) for token in list(self._held)))

    async def _speak_for(self, token: str) -> None:
        reference = self._held.get(token)
        delivery = None if reference is None else reference()
        if delivery is None:
            self._held.pop(token, None)
            return
        try:
            await delivery.in_progress()
        except (Conflict, NotFound) as error:
            self._held.pop(token, None)
            if delivery.settled is None:
                log.warning("%r is no longer ours: %s", delivery, error)
        except TensorbusError as error:
            log.debug("no heartbeat for %r: %s", delivery, error)
