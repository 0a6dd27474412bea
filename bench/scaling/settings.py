"""What a simulated federation is made of. All assumptions are here, and all can be changed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Service:
    """What one machine was measured to take for one codec, see ``bench/scale.py --measure``.

    Attributes:
        codec: of the messages.
        ratio: bytes on the wire for each byte of the fp32 model.
        publish: seconds to encode, send and have stored one GB of fp32.
        fold: seconds to read, decode and add one GB of fp32 to an accumulator.
        fixed: seconds for a message, whatever its size.
    """

    codec: str
    ratio: float
    publish: float
    fold: float
    fixed: float


@dataclass(frozen=True, slots=True)
class Settings:
    """A federation, and one round of it.

    Attributes:
        fans: children of each node, from the root down; the last are sites. ``(1000, 1000)`` is a million.
        model_gb: the model in fp32, in GB.
        service: of every aggregator and its broker.
        network: bytes/s of a node's network, each way.
        broker: bytes/s that a broker takes in or gives out.
        up, down: medians of the sites' uplinks and downlinks, bytes/s; spread log-normally with ``spread``.
        training: median seconds, spread log-normally with ``training_spread``.
        quorum: share of its children that a node waits for.
    """

    fans: tuple[int, ...]
    service: Service
    model_gb: float = 5.994
    network: float = 10e9 / 8
    broker: float = 1.0e9
    up: float = 50e6 / 8
    down: float = 200e6 / 8
    spread: float = 0.7
    training: float = 600.0
    training_spread: float = 0.3
    quorum: float = 0.95
    free: frozenset[str] = field(default_factory=lambda: frozenset[str]())

    @property
    def sites(self) -> int:
        """How many there are."""
        return math.prod(self.fans)

    @property
    def wire(self) -> float:
        """Bytes of one message."""
        return self.model_gb * 1e9 * self.service.ratio

    def without(self, resource: str) -> Settings:
        """The same federation, in which ``resource`` is no limit: what is gained is what it costs."""
        return replace(self, free=self.free | {resource})


RESOURCES = {
    "site links": "the sites' own uplinks and downlinks",
    "networks": "the network of the nodes",
    "brokers": "bytes/s through the nodes' brokers",
    "folding": "decoding and adding updates",
    "encoding": "making the models and the nodes' own updates",
    "training": "the sites' computing",
    "stragglers": "waiting for the slow ones: the spread of links and training",
}
