"""The store that several machines share: NATS JetStream keeps the log and the pieces of frames."""

from importlib.util import find_spec

from tensorbus.errors import MissingPackage

if find_spec("nats") is None:  # pragma: no cover - tests have it
    raise MissingPackage("the JetStream store needs nats-py: pip install 'tensorbus[nats]'")

from .settings import JetStreamSettings
from .store import JetStreamStore

__all__ = ["JetStreamSettings", "JetStreamStore"]
