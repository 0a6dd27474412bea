"""What handing messages over needs of the rest of the broker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tensorbus.bus.clock import Clock
from tensorbus.bus.measures import Measures
from tensorbus.bus.stores.base import Store

from .consumers import Consumers
from .workers import Workers


@dataclass(frozen=True, slots=True)
class DeliveryHost:
    """Shared by deliveries and dead letters; the callables return at once.

    Attributes:
        stored: told id and topic of a message that was listed.
        settled: told the ids of messages that a consumer has settled for good.
        damaged: told the id of a message whose frames are not what was stored, and why.
    """

    store: Store
    consumers: Consumers
    workers: Workers
    clock: Clock
    measures: Measures
    stored: Callable[[str, str], None]
    settled: Callable[[Sequence[str]], None]
    damaged: Callable[[str, str], None]
