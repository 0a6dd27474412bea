"""Switch: what people want of a job, as its aggregator hears it, and work that ends when they want that.

Strategy. A *watch* follows the orders while the work goes on beside it. An order to cancel ends the work
wherever it is; so does the news that another aggregator has taken the job over. An order to pause ends
nothing: the work asks whether it is `going` before each thing that others would see.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import TypeVar

from tensorbus.bus.client import Client, Delivery, Subscription
from tensorbus.errors import (
    AlreadySettled,
    BrokerUnavailable,
    InvalidRequest,
    JobCancelled,
    NotFound,
    StoreDamaged,
    TransferStalled,
)

from .claim import Claim
from .control import Order, parse_order
from .events import Emitter
from .job import rounds_consumer, rounds_topic
from .updates import FoldingInterrupted

T = TypeVar("T")
log = logging.getLogger("tensorbus.aggregator")

AGAIN = 1.0
"""Seconds after which the watch goes on when the broker was away."""
LOOK_AGAIN = 5.0
"""Seconds after which it is made sure that nobody has taken the job over, though no order came."""


class Switch:
    """What was ordered last, and a way to wait for a change.

    Args:
        orders: that there are already.
        listed: gives those that lie at the broker at this moment.

    Attributes:
        changed: set when it did; whoever looks clears it.
        ended: set when the job was cancelled.
    """

    def __init__(
        self, orders: Iterable[Order] = (), listed: Callable[[], Awaitable[Iterable[Order]]] | None = None
    ) -> None:
        self.paused = False
        self.changed = asyncio.Event()
        self.ended = asyncio.Event()
        self._listed = listed
        self._seq = 0
        self.turn(*orders)

    def turn(self, *orders: Order) -> None:
        """Orders have come, or were listed; nothing undoes a cancellation."""
        for order in orders:
            if order.seq <= self._seq:
                continue  # it is known
            self._seq = order.seq
            self.paused = order.action == "pause"
            self.changed.set()
            if order.action == "cancel":
                self.cancel()

    def cancel(self) -> None:
        """As if that was ordered; nobody has to."""
        self.ended.set()
        self.changed.set()

    def check(self) -> None:
        """Raises JobCancelled: that was ordered."""
        if self.ended.is_set():
            raise JobCancelled("the job was cancelled; its last model stays at the broker")

    async def going(self, emit: Emitter, number: int) -> bool:
        """Wait as long as the job is paused, in round ``number``; whether it was. Raises JobCancelled.

        The orders are listed: one that was given before now holds, though it has not been delivered yet.
        """
        if self._listed is not None:
            self.turn(*await self._listed())
        self.check()
        if not self.paused:
            return False
        emit("paused", round=number)
        while self.paused:
            await self.changed.wait()
            self.changed.clear()
            self.check()
        emit("continued", round=number)
        return True


def orders_of(bus: Client, job: str) -> Subscription:
    """The orders that come from now on, to be followed by a `Switch`."""
    return bus.subscribe(rounds_topic(job), consumer=rounds_consumer(job), start="new", prefetch=16)


async def obeying(
    work: Coroutine[object, object, T], switch: Switch, deliveries: Subscription, claim: Claim
) -> T:
    """The result of ``work``, while ``switch`` follows the orders as they come.

    Raises:
        JobCancelled: that was ordered; the work was ended.
        JobError: another aggregator has taken the job over, and so the orders as well.
        FoldingInterrupted: nobody has, and yet the consumer of the orders is gone.
    """
    working = asyncio.create_task(work)
    watch = asyncio.create_task(_watch(deliveries, switch, claim), name="tensorbus-orders")
    ended = asyncio.create_task(switch.ended.wait())
    try:
        await asyncio.wait([working, watch, ended], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            switch.check()
            watch.result()
        return await working
    finally:
        tasks = (working, watch, ended)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.exception()  # seen: of two that end at once, one is raised


async def _watch(deliveries: Subscription, switch: Switch, claim: Claim) -> None:
    """Ends only by an error."""
    while True:
        try:
            delivery = await deliveries.receive(LOOK_AGAIN)
            if delivery is None:
                await claim.check()
            else:
                await _heard(delivery, switch, claim)
        except NotFound:
            await _lost(claim)
        except (AlreadySettled, InvalidRequest, StoreDamaged) as error:
            log.warning("an order cannot be used: %s", error)
        except (BrokerUnavailable, TransferStalled) as error:
            log.info("orders cannot be heard: %s", error)
            await asyncio.sleep(AGAIN)


async def _heard(delivery: Delivery, switch: Switch, claim: Claim) -> None:
    """An order that comes when the claim has passed to another aggregator is left to that one."""
    try:
        await claim.check()
    except BaseException:
        await delivery.nak()  # at once, for whoever has the job
        raise
    if delivery.headers.get("kind") == "order":
        switch.turn(parse_order(delivery.info))
    await delivery.ack()


async def _lost(claim: Claim) -> None:
    """The consumer was deleted: by whoever has taken the job over, or by somebody who should not."""
    await claim.check()
    raise FoldingInterrupted("the consumer of the job's orders was deleted")
