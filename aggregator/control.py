"""Control: people pause, resume and cancel a job, by orders on the topic of its rounds.

An order is a tiny message, so it reaches an aggregator that is not running at the moment as well. The last
one holds. A cancelled job has a *tombstone* on its models' topic besides, as the newest message there: that
is where sites look, who need no right to read anything else; and it outlives all but the last model.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal, cast

from tensorbus.bus.client import Client, Subscription
from tensorbus.bus.fields import Fields
from tensorbus.bus.messages import MessageInfo
from tensorbus.errors import (
    AlreadySettled,
    BrokerUnavailable,
    InvalidRequest,
    JobCancelled,
    JobError,
    NotFound,
    StoreDamaged,
    TransferStalled,
)

from .claim import Claim
from .job import model_topic, rounds_consumer, rounds_topic

log = logging.getLogger("tensorbus.aggregator")

Action = Literal["pause", "resume", "cancel"]
ACTIONS: Sequence[Action] = ("pause", "resume", "cancel")
AGAIN = 1.0
"""Seconds after which the watch goes on when the broker was away."""


@dataclass(frozen=True, slots=True)
class Order:
    """What somebody wants of a job.

    Attributes:
        at: when it was given, in seconds since the epoch.
        seq: its position in the broker's log.
    """

    action: Action
    at: float
    seq: int = 0


def parse_order(info: MessageInfo) -> Order:
    """The order in a message. Raises InvalidRequest: it is none."""
    got = Fields(info.headers, "order")
    return Order(cast(Action, got.choice("action", ACTIONS)), got.number("at", 0, 1e12), info.seq or 0)


async def give_order(bus: Client, job: str, action: Action) -> None:
    """Have the aggregator of ``job`` do this; it holds until another order does. Durable when it returns."""
    headers = {"kind": "order", "job": job, "action": action, "at": time.time()}
    await bus.publish(rounds_topic(job), b"", headers=headers, key=f"{job}/{action}-{secrets.token_hex(8)}")


async def bury(bus: Client, job: str, number: int) -> None:
    """Tell the sites that ``job`` was cancelled, when its newest model was that of round ``number``."""
    headers = {"kind": "cancelled", "job": job, "round": number}
    await bus.publish(model_topic(job), b"", headers=headers, key=f"{job}/cancelled-{number}")


def is_tombstone(info: MessageInfo) -> bool:
    """Whether a message on a models' topic says that the job was cancelled."""
    return info.headers.get("kind") == "cancelled"


def paused_for(orders: Sequence[Order], opened: float, now: float) -> tuple[float, float | None]:
    """Of a round that began at ``opened``: the seconds for which it was paused, and since when it is now.

    None if it is not. All times are seconds since the epoch.
    """
    total, since = 0.0, None
    for order in orders:
        if order.action == "pause" and since is None:
            since = order.at
        elif order.action == "resume" and since is not None:
            total += max(0.0, min(order.at, now) - max(since, opened))
            since = None
    return total, None if since is None else max(since, opened)


class Switch:
    """What was ordered last, and a way to wait for a change.

    Attributes:
        changed: set when it did; whoever looks clears it.
    """

    def __init__(self, orders: Sequence[Order] = ()) -> None:
        self.paused = False
        self.cancelled = False
        self.changed = asyncio.Event()
        self._seq = 0
        for order in orders:
            self.turn(order)

    def turn(self, order: Order) -> None:
        """An order has come; nothing undoes a cancellation."""
        if order.seq <= self._seq:
            return  # it is known
        self._seq = order.seq
        self.cancelled = self.cancelled or order.action == "cancel"
        self.paused = order.action == "pause"
        self.changed.set()

    def cancel(self) -> None:
        """As if that was ordered; nobody has to."""
        self.cancelled = True
        self.changed.set()

    def check(self) -> None:
        """Raises JobCancelled: that was ordered."""
        if self.cancelled:
            raise JobCancelled("the job was cancelled; its last model stays at the broker")


def orders_of(bus: Client, job: str) -> Subscription:
    """The orders that come from now on, to be followed by a `Switch`."""
    return bus.subscribe(rounds_topic(job), consumer=rounds_consumer(job), start="new", prefetch=16)


@asynccontextmanager
async def following(switch: Switch, deliveries: Subscription, claim: Claim) -> AsyncGenerator[None]:
    """Have ``switch`` follow orders as they come, for as long as the block runs.

    An order that comes when the claim on the job has passed to another aggregator is left to that one.
    """
    watch = asyncio.create_task(_watch(deliveries, switch, claim), name="tensorbus-orders")
    try:
        yield
    finally:
        watch.cancel()
        await asyncio.wait([watch])


async def _watch(deliveries: Subscription, switch: Switch, claim: Claim) -> None:
    while True:
        try:
            delivery = await anext(deliveries)
            try:
                await claim.check()
            except BaseException:
                await delivery.nak()  # at once, for whoever has the job
                raise
            if delivery.headers.get("kind") == "order":
                switch.turn(parse_order(delivery.info))
            await delivery.ack()
        except (JobError, NotFound):
            return  # another aggregator has taken the job over, as this one will hear
        except (AlreadySettled, InvalidRequest, StoreDamaged) as error:
            log.warning("an order cannot be used: %s", error)
        except (BrokerUnavailable, TransferStalled) as error:
            log.info("orders cannot be heard: %s", error)
            await asyncio.sleep(AGAIN)
