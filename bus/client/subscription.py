"""Subscription: deliveries of a consumer, one after another, for as long as the block runs."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from types import TracebackType
from typing import Self

from tensorbus.bus.consumers import ConsumerConfig, DeliveryInfo
from tensorbus.bus.fields import Fields
from tensorbus.bus.topics import check_consumer_name
from tensorbus.errors import ClientClosed, NotFound, TensorbusError

from .bases import Bases
from .connection import Connection, segment
from .delivery import Delivery
from .heartbeat import Heartbeat
from .message import describe

log = logging.getLogger("tensorbus.client")

GOODBYE = 5.0
"""Seconds that leaving the block may take to give back what is held."""


class Subscription:
    """An asynchronous iterator of deliveries; never ends by itself, and survives a restart of the broker.

        async with bus.subscribe("fl.*.updates", consumer="aggregator") as deliveries:
            async for delivery in deliveries:
                …
                await delivery.ack()

    Leaving the block gives unsettled deliveries back at once; an ephemeral consumer (no name) is deleted.

    Args:
        consumer: a durable consumer's name, shared by its workers; None for one of this subscription's own.
        follow: also hand over messages that are still being published.
    """

    def __init__(
        self,
        connection: Connection,
        bases: Bases,
        config: ConsumerConfig,
        consumer: str | None,
        follow: bool,
    ) -> None:
        self.consumer = check_consumer_name(consumer or f"ephemeral-{secrets.token_hex(8)}")
        self.config = config
        self._ephemeral = consumer is None
        self._follow = follow
        self._connection = connection
        self._bases = bases
        self._heartbeat = Heartbeat(config.ack_wait)
        self._open = False

    async def __aenter__(self) -> Self:
        """Create the consumer, or take it up where it was.

        Raises:
            Conflict: it exists with another filter or other settings.
        """
        await self._connection.call("PUT", self._path, document=self.config.to_json())
        self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delivery:
        delivery = await self.receive()
        assert delivery is not None  # without a time-out it waits
        return delivery

    async def receive(self, timeout: float | None = None) -> Delivery | None:  # noqa: ASYNC109 - a poll, not a deadline
        """The next delivery; None when none came within ``timeout`` seconds.

        Raises:
            BrokerUnavailable: the broker went away and did not come back in time.
            NotFound: the consumer was deleted.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if not self._open:
                raise ClientClosed(
                    "the subscription is not open; use it inside `async with bus.subscribe(…)`"
                )
            wait = self._connection.settings.poll_wait
            if deadline is not None:
                wait = max(0.0, min(wait, deadline - time.monotonic()))
            given = await self._pull(wait)
            if given is not None and (delivery := await self._take(given)) is not None:
                return delivery
            if deadline is not None and time.monotonic() >= deadline:
                return None

    async def aclose(self) -> None:
        """Stop, give back what is held, and delete the consumer if it is ephemeral. May be called twice."""
        if not self._open:
            return
        self._open = False
        held = await self._heartbeat.aclose()
        if self._connection.closed:
            return
        try:
            async with asyncio.timeout(GOODBYE):
                if self._ephemeral:
                    await self._connection.call("DELETE", self._path, retry=False)
                else:
                    await asyncio.gather(*(delivery.give_back() for delivery in held), return_exceptions=True)
        except (TensorbusError, TimeoutError) as error:
            log.debug("leaving %s: %s", self.consumer, error)

    @property
    def _path(self) -> str:
        return f"/v1/consumers/{segment(self.consumer)}"

    async def _pull(self, wait: float) -> DeliveryInfo | None:
        answer = await self._connection.call(
            "POST",
            f"{self._path}/deliveries",
            document={"max": 1, "wait": wait, "follow": self._follow},
            wait=wait,
        )
        given = Fields(answer, "deliveries").array("deliveries")
        return DeliveryInfo.from_json(given[0]) if given else None

    async def _take(self, given: DeliveryInfo) -> Delivery | None:
        try:
            info, entries = await describe(self._connection, given.message.id)
        except NotFound:
            return None  # deleted or given up by its publisher since it was handed over
        delivery = Delivery(self._connection, self._bases, given, info, entries, self._heartbeat.release)
        self._heartbeat.hold(delivery)
        return delivery
