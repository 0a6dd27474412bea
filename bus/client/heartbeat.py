"""Heartbeat: keeps the deliveries that somebody still holds from being handed to another worker."""

from __future__ import annotations

import asyncio
import logging
import weakref
from dataclasses import dataclass

from tensorbus.bus.consumers import ConsumerConfig
from tensorbus.errors import TensorbusError

from .acks import MAX_TOKENS, failures
from .connection import Connection
from .delivery import Delivery
from .retry import TRANSIENT

log = logging.getLogger("tensorbus.client")

BEATS = 3
"""Heartbeats within the shortest wait of a consumer: one may be lost without harm."""


@dataclass(frozen=True, slots=True)
class Unsettled:
    """Tokens of what was held at the end: by somebody, or by nobody yet."""

    read: list[str]
    unread: list[str]


class Heartbeat:
    """Says that work is in progress on every delivery that is neither settled nor let go.

    Args:
        path: of the consumer.
        config: the consumer's.
    """

    def __init__(self, connection: Connection, path: str, config: ConsumerConfig) -> None:
        self._connection = connection
        self._path = path
        self._interval = min((config.ack_wait, *config.backoff)) / BEATS
        self._held: dict[str, weakref.ref[Delivery] | None] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def held(self) -> int:
        """How many deliveries it speaks for."""
        return len(self._held)

    def expect(self, token: str) -> None:
        """Begin to speak for a delivery that waits for somebody to take it."""
        self._held[token] = None
        if self._task is None:
            self._task = asyncio.create_task(self._beat(), name="tensorbus-heartbeat")

    def hold(self, delivery: Delivery) -> None:
        """``delivery`` is in somebody's hands. It is held weakly, so letting it go is enough to end that."""
        self.expect(delivery.token)
        self._held[delivery.token] = weakref.ref(delivery)

    def release(self, token: str) -> None:
        """The delivery has been settled, or is of no use."""
        self._held.pop(token, None)

    async def aclose(self) -> Unsettled:
        """Stop; returns what is still held, unsettled."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        self._drop_gone()
        unread = [token for token, reference in self._held.items() if reference is None]
        read = [token for token, reference in self._held.items() if reference is not None]
        self._held.clear()
        return Unsettled(read, unread)

    def _drop_gone(self) -> None:
        for token, reference in list(self._held.items()):
            if reference is not None and reference() is None:
                del self._held[token]

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            self._drop_gone()
            tokens = list(self._held)
            for start in range(0, len(tokens), MAX_TOKENS):
                await self._speak_for(tokens[start : start + MAX_TOKENS])

    async def _speak_for(self, tokens: list[str]) -> None:
        for token, error in (await self._said(tokens)).items():
            reference = self._held.pop(token, None)
            delivery = None if reference is None else reference()
            # While its settlement is under way, the broker says that it has it.
            if delivery is not None and delivery.settled is None and not delivery.settling:
                log.warning("%r is no longer ours: %s", delivery, error)

    async def _said(self, tokens: list[str]) -> dict[str, TensorbusError]:
        """Why some of the deliveries are not ours any more, says any of the brokers."""
        path = f"{self._path}/in_progress"
        for _ in self._connection.addresses.all:
            try:
                return await failures(self._connection, path, {"tokens": tokens}, patience=self._interval)
            except TensorbusError as error:
                log.debug("no heartbeat for %d deliveries: %s", len(tokens), error)
                if not isinstance(error, TRANSIENT):
                    break
        return {}
