"""The store that several machines share: NATS JetStream keeps the log and the pieces of frames."""

from .settings import JetStreamSettings
from .store import JetStreamStore

__all__ = ["JetStreamSettings", "JetStreamStore"]
