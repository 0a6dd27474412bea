"""The broker's core: messages in, messages out, who has acknowledged what. Knows no HTTP."""

from .broker import Broker
from .settings import BrokerSettings

__all__ = ["Broker", "BrokerSettings"]
