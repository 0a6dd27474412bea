"""Stores for tests: the kinds that there are, and the NATS servers that some of them need."""

from .accounts import Account
from .gateways import Gateways
from .kinds import KINDS, Stores
from .lagging import LaggingReplica
from .left import frames_left
from .network import Network
from .relay import Relay
from .servers import NatsServers, free_ports
from .traffic import Traffic

__all__ = [
    "Account",
    "Gateways",
    "KINDS",
    "LaggingReplica",
    "NatsServers",
    "Network",
    "Relay",
    "Stores",
    "Traffic",
    "free_ports",
    "frames_left",
]
