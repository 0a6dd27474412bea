"""Tensorbus: an asyncio message bus for model updates.

The public names, loaded when they are first used, so that ``import tensorbus`` costs next to nothing and
never imports torch::

    from tensorbus import Client

    async with Client("http://127.0.0.1:8080") as bus:
        receipt = await bus.publish("models.demo", model.state_dict(), codec="nf4")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tensorbus.aggregator.job import JobSpec
    from tensorbus.aggregator.participant import Participant, Task
    from tensorbus.aggregator.sync import SyncParticipant
    from tensorbus.bus.client import (
        Client,
        ClientSettings,
        Delivery,
        Message,
        Progress,
        Receipt,
        Subscription,
        TlsSettings,
    )
    from tensorbus.bus.client.sync import SyncClient
    from tensorbus.codecs.item import Item, ItemSpec
    from tensorbus.codecs.pipeline import Pipeline
    from tensorbus.errors import TensorbusError

__version__ = "0.1.0"

_HOMES = {
    "Client": "tensorbus.bus.client",
    "ClientSettings": "tensorbus.bus.client",
    "Delivery": "tensorbus.bus.client",
    "Item": "tensorbus.codecs.item",
    "ItemSpec": "tensorbus.codecs.item",
    "JobSpec": "tensorbus.aggregator.job",
    "Message": "tensorbus.bus.client",
    "Participant": "tensorbus.aggregator.participant",
    "Pipeline": "tensorbus.codecs.pipeline",
    "Progress": "tensorbus.bus.client",
    "Receipt": "tensorbus.bus.client",
    "Subscription": "tensorbus.bus.client",
    "SyncClient": "tensorbus.bus.client.sync",
    "SyncParticipant": "tensorbus.aggregator.sync",
    "Task": "tensorbus.aggregator.participant",
    "TensorbusError": "tensorbus.errors",
    "TlsSettings": "tensorbus.bus.client",
}

__all__ = [
    "Client",
    "ClientSettings",
    "Delivery",
    "Item",
    "ItemSpec",
    "JobSpec",
    "Message",
    "Participant",
    "Pipeline",
    "Progress",
    "Receipt",
    "Subscription",
    "SyncClient",
    "SyncParticipant",
    "Task",
    "TensorbusError",
    "TlsSettings",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'tensorbus' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
