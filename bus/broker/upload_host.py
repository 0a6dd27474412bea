"""What an upload needs of the broker that it belongs to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from tensorbus.bus.clock import Clock
from tensorbus.bus.stores.base import NO_TERMS, Store, StoredDelivery, Terms

from .inflow import Running
from .open_message import OpenMessage
from .settings import BrokerSettings
from .workers import Workers


def _no_terms(_message: OpenMessage) -> Terms:
    return NO_TERMS


@dataclass(frozen=True, slots=True)
class UploadHost:
    """Shared by all uploads of a broker.

    Attributes:
        changed: called when the message's envelope is known, when it was sealed and when it was aborted.
        followers: the deliveries of a message that were handed out while it was open.
        parked: called with the id of an upload without a writer that has what it needs to go on at once.
        look_up: look again what is stored beside the message in its quotas.
        terms: on which a message may be listed.
        running: shared by all uploads.
    """

    store: Store
    settings: BrokerSettings
    workers: Workers
    clock: Clock
    changed: Callable[[OpenMessage], None]
    followers: Callable[[OpenMessage], Sequence[StoredDelivery]]
    parked: Callable[[str], None]
    look_up: Callable[[OpenMessage], Awaitable[None]]
    terms: Callable[[OpenMessage], Terms] = _no_terms
    running: Running = field(default_factory=Running)
