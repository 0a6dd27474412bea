"""Inbox: what sites have sent, one after another, for somebody who has to hear of other things as well.

Whoever takes a job over makes its consumers anew, under their old names. The one before it mostly hears of
that at once; but if it was stopped meanwhile, or had lost the broker, it would go on with the new consumer,
and take updates away from its successor. So it looks now and then whether the consumer is still the one that
it made, and the claim on the job its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import datetime
from types import TracebackType
from typing import Self

from tensorbus.bus.client import Client, Delivery, Subscription
from tensorbus.errors import JobError, NotFound, StoreDamaged

from .claim import Claim

log = logging.getLogger("tensorbus.aggregator")


LOOK_AGAIN = 5.0
"""Seconds after which it is made sure that nobody has taken the job over."""


class Inbox:
    """Receives in a task of its own, so that waiting can end without losing a delivery.

    Args:
        deliveries: of a consumer that was made just now.
        claim: this aggregator's; None where it does not matter who is first.
    """

    def __init__(self, bus: Client, deliveries: Subscription, job: str, claim: Claim | None = None) -> None:
        self._bus = bus
        self._claim = claim
        self._deliveries = deliveries
        self._job = job
        self._made: datetime | None = None
        self._looked = 0.0
        self._receiving: asyncio.Task[Delivery] | None = None

    async def __aenter__(self) -> Self:
        await self.check()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._receiving is not None:
            self._receiving.cancel()
            await asyncio.wait([self._receiving])

    async def next(self, changed: asyncio.Event, timeout: float | None = None) -> Delivery | None:  # noqa: ASYNC109 - a poll
        """The next delivery; None after ``timeout`` seconds or sooner, or when ``changed`` was set, which is
        cleared.

        Raises:
            JobError: another aggregator has taken the job over.
            BrokerUnavailable, TransferStalled: the client lost its patience.
        """
        if self._receiving is None:
            self._receiving = asyncio.create_task(anext(self._deliveries), name="tensorbus-inbox")
        change = asyncio.create_task(changed.wait())
        patience = LOOK_AGAIN if timeout is None else min(timeout, LOOK_AGAIN)
        try:
            await asyncio.wait(
                [self._receiving, change], timeout=patience, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            change.cancel()
        changed.clear()
        if time.monotonic() - self._looked >= LOOK_AGAIN:
            await self.check()
        if not self._receiving.done():
            return None
        received, self._receiving = self._receiving, None
        try:
            return received.result()
        except NotFound:
            raise self._taken() from None
        except StoreDamaged as error:
            log.error("an update cannot even be looked at: %s", error)
            return None

    async def check(self) -> None:
        """Make sure that the consumer is this aggregator's, and the job. Raises as ``next``."""
        if self._claim is not None:
            await self._claim.check()
        try:
            made = (await self._bus.consumer(self._deliveries.consumer)).created
        except NotFound:
            raise self._taken() from None
        if made != (self._made or made):
            raise self._taken()
        self._made, self._looked = made, time.monotonic()

    def _taken(self) -> JobError:
        return JobError(f"another aggregator has taken over job {self._job!r}")
