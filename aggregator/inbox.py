"""Inbox: what sites have sent, one after another, for somebody who has to hear of other things as well."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Self

from tensorbus.bus.client import Delivery, Subscription
from tensorbus.errors import JobError, NotFound, StoreDamaged

log = logging.getLogger("tensorbus.aggregator")


class Inbox:
    """Receives in a task of its own, so that waiting can end without losing a delivery."""

    def __init__(self, deliveries: Subscription, job: str) -> None:
        self._deliveries = deliveries
        self._job = job
        self._receiving: asyncio.Task[Delivery] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._receiving is not None:
            self._receiving.cancel()
            await asyncio.wait([self._receiving])

    async def next(self, changed: asyncio.Event, timeout: float | None = None) -> Delivery | None:  # noqa: ASYNC109 - a poll
        """The next delivery; None after ``timeout`` seconds, or when ``changed`` was set, which is cleared.

        Raises:
            JobError: another aggregator has taken the job over.
            BrokerUnavailable, TransferStalled: the client lost its patience.
        """
        if self._receiving is None:
            self._receiving = asyncio.create_task(anext(self._deliveries), name="tensorbus-inbox")
        change = asyncio.create_task(changed.wait())
        try:
            await asyncio.wait(
                [self._receiving, change], timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            change.cancel()
        changed.clear()
        if not self._receiving.done():
            return None
        received, self._receiving = self._receiving, None
        try:
            return received.result()
        except NotFound:
            raise JobError(f"another aggregator has taken over job {self._job!r}") from None
        except StoreDamaged as error:
            log.error("an update cannot even be looked at: %s", error)
            return None
