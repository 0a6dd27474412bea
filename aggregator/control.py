"""Control: people pause, resume and cancel a job, by orders on the topic of its rounds.

An order is a tiny message, so it reaches an aggregator that is not running at the moment as well. The last
one holds. A cancelled job has a *tombstone* on its models' topic besides, as the newest message there: that
is where sites look, who need no right to read anything else; and it outlives all but the last model.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from tensorbus.bus.client import Client
from tensorbus.bus.fields import Fields
from tensorbus.bus.messages import MessageInfo

from .job import model_topic, rounds_topic

Action = Literal["pause", "resume", "cancel"]
ACTIONS: Sequence[Action] = ("pause", "resume", "cancel")


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
