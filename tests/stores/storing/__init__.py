"""Stores for tests: the kinds that there are, and the NATS servers that some of them need."""

from .gateways import Gateways
from .kinds import KINDS, Stores
from .network import Network
from .servers import NatsServers, free_ports
from .traffic import Traffic

__all__ = ["Gateways", "KINDS", "NatsServers", "Network", "Stores", "Traffic", "free_ports"]
