"""Subscription: deliveries of a consumer, one after another, for as long as the block runs."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from types import TracebackType
from typing import Self

from tensorbus.bus.consumers import ConsumerConfig, DeliveryInfo
from tensorbus.bus.fields import Fields
from tensorbus.bus.topics import check_consumer_name
from tensorbus.errors import ClientClosed, NotFound, TensorbusError

from .acks import MAX_TOKENS, Acks, failures
from .bases import Bases
from .connection import Connection, segment
from .delivery import Delivery
from .delivery_host import DeliveryHost
from .describing import describe
from .heartbeat import Heartbeat
from .held_frames import MAX_HELD
from .retry import TRANSIENT
from .stream import Stream

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
        prefetch: 1 asks for each delivery when it is wanted. More of them keeps a stream open, on which so
            many come by themselves as soon as there are any; those that nobody has taken yet wait here, where
            other workers do not get them.
    """

    def __init__(
        self,
        connection: Connection,
        bases: Bases,
        config: ConsumerConfig,
        consumer: str | None,
        follow: bool,
        prefetch: int = 1,
    ) -> None:
        self.consumer = check_consumer_name(consumer or f"ephemeral-{secrets.token_hex(8)}")
        self.config = config
        self._ephemeral = consumer is None
        self._follow = follow
        self._prefetch = min(prefetch, config.max_ack_pending, MAX_TOKENS)
        self._connection = connection
        self._heartbeat = Heartbeat(connection, self._path, config)
        self._acks = Acks(connection, self._path)
        self._host = DeliveryHost(connection, bases, self._acks, self._heartbeat.release)
        self._waiting: deque[DeliveryInfo] = deque()
        self._stream = Stream(connection, self._path, self._prefetch, follow, self._came)
        self._more: asyncio.Task[None] | None = None
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
            given = await self._next(wait)
            if given is not None and (delivery := await self._take(given)) is not None:
                return delivery
            if deadline is not None and time.monotonic() >= deadline:
                return None

    async def aclose(self) -> None:
        """Stop, give back what is held, and delete the consumer if it is ephemeral. May be called twice."""
        if not self._open:
            return
        self._open = False
        try:
            async with asyncio.timeout(GOODBYE):
                await self._stream.aclose()
                await self._acks.drain()
        except TimeoutError:
            log.debug("leaving %s: the broker does not answer", self.consumer)
        if self._more is not None:
            self._more.cancel()  # the broker sees it, and gives what it brings to others
            await asyncio.wait([self._more])
        held = await self._heartbeat.aclose()
        self._waiting.clear()
        if self._connection.closed:
            return
        try:
            async with asyncio.timeout(GOODBYE):
                if self._ephemeral:
                    await self._connection.call("DELETE", self._path, retry=False)
                else:
                    await self._give_back(held.read, unread=False)
                    await self._give_back(held.unread, unread=True)
        except (TensorbusError, TimeoutError) as error:
            log.debug("leaving %s: %s", self.consumer, error)

    @property
    def _path(self) -> str:
        return f"/v1/consumers/{segment(self.consumer)}"

    async def _give_back(self, tokens: list[str], *, unread: bool) -> None:
        for start in range(0, len(tokens), MAX_TOKENS):
            some = tokens[start : start + MAX_TOKENS]
            await failures(self._connection, f"{self._path}/naks", {"tokens": some, "unread": unread})

    # --- what is to come ---------------------------------------------------------------------------

    async def _next(self, wait: float) -> DeliveryInfo | None:
        """The next delivery: one that is here already, or one that the broker has within ``wait`` seconds."""
        if self._prefetch == 1:
            if not self._waiting:
                await self._pull(wait, 1)
        elif not self._waiting:
            await self._streamed(wait)
        return self._waiting.popleft() if self._waiting else None

    async def _streamed(self, wait: float) -> None:
        """Wait for what comes by itself.

        Who holds as many deliveries as may be unsettled on the stream, and wants more, has to ask for them.
        """
        deadline = time.monotonic() + wait
        while not self._waiting:
            self._stream.start()
            if self._heartbeat.held >= self._prefetch and self._more is None:
                self._more = asyncio.create_task(self._pull_more(), name="tensorbus-fetch")
            if not await self._stream.news(max(0.0, deadline - time.monotonic())):
                return

    async def _pull_more(self) -> None:
        try:
            await self._pull(self._connection.settings.poll_wait, self._prefetch)
        except TensorbusError as error:
            log.debug("fetching for %s: %s", self.consumer, error)  # what ails the stream is raised
        finally:
            self._more = None
            self._stream.tell()

    async def _pull(self, wait: float, limit: int) -> None:
        answer = await self._connection.call(
            "POST",
            f"{self._path}/deliveries",
            document={"max": limit, "wait": wait, "follow": self._follow, "inline": MAX_HELD},
            wait=wait,
        )
        for each in Fields(answer, "deliveries").array("deliveries"):
            self._came(DeliveryInfo.from_json(each))

    def _came(self, given: DeliveryInfo) -> None:
        self._heartbeat.expect(given.token)
        self._waiting.append(given)

    async def _take(self, given: DeliveryInfo) -> Delivery | None:
        try:
            info, entries = given.message, None
            if given.frames is None:
                info, entries = await describe(self._connection, given.message.id)
        except NotFound:
            self._heartbeat.release(given.token)
            return None  # deleted or given up by its publisher since it was handed over
        except (asyncio.CancelledError, *TRANSIENT):
            self._waiting.appendleft(given)
            raise
        delivery = Delivery(self._host, given, info, entries)
        self._heartbeat.hold(delivery)
        return delivery
