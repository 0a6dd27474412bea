"""One round of a federation that is a tree, in virtual time.

The root publishes the model; each node downloads it from the broker above it and offers it on its own; sites
train and upload; a node folds updates as they are sealed, one after the other, and sends its mean upward when
the quorum is in. Models are passed on whole: a node's children begin when it has all of the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .links import Floats, served, shared
from .settings import Settings


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one round took.

    Attributes:
        seconds: from the model's first byte to the next model.
        root_gb, node_gb: bytes in and out of the root, and of the busiest node of the lowest level.
        disk_gb: that a broker of the lowest level holds at the end of a round.
        wide_area_tb: that all sites sent and received.
        cpu_hours: of all aggregators.
    """

    seconds: float
    root_gb: float
    node_gb: float
    disk_gb: float
    wide_area_tb: float
    cpu_hours: float


class Federation:
    """A tree with its sites, drawn once from ``seed``, so that variants of it are compared like with like."""

    def __init__(self, settings: Settings, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        count = settings.sites
        self._up = np.exp(random.standard_normal(count))
        self._down = np.exp(0.8 * np.log(self._up) + 0.6 * random.standard_normal(count))
        self._training = np.exp(random.standard_normal(count))

    def round(self, settings: Settings) -> Outcome:
        """One round as ``settings`` have it."""
        free = settings.free
        spread = 0.0 if "stragglers" in free else settings.spread
        training_spread = 0.0 if "stragglers" in free else settings.training_spread
        if "site links" in free:
            up = down = np.full(settings.sites, 1e15)
        else:
            up, down = settings.up * self._up**spread, settings.down * self._down**spread
        training = np.zeros(settings.sites)
        if "training" not in free:
            training = settings.training * self._training**training_spread
        times = _Times(settings)
        ready = times.encode
        has = np.array([ready])
        for fan in settings.fans[:-1]:
            has = self._pass_down(has, fan, np.full(len(has) * fan, times.node), times)
        has = self._pass_down(has, settings.fans[-1], down, times)
        done = self._pass_up(has + training, settings.fans[-1], up, times)
        for fan in reversed(settings.fans[:-1]):
            done = self._pass_up(done + times.encode, fan, np.full(len(done), times.node), times)
        return self._outcome(settings, float(done[0]), times)

    @staticmethod
    def _pass_down(has: Floats, fan: int, limits: Floats, times: _Times) -> Floats:
        """When the children have the model, whose parents have it at ``has``."""
        groups = limits.reshape(len(has), fan)
        sizes = np.full(fan, times.wire)
        return np.concatenate(
            [
                shared(np.full(fan, begin), sizes, row, times.node)
                for begin, row in zip(has, groups, strict=True)
            ]
        )

    @staticmethod
    def _pass_up(begins: Floats, fan: int, limits: Floats, times: _Times) -> Floats:
        """When the parents have the mean of their children, who send from ``begins`` on."""
        sizes = np.full(fan, times.wire)
        results: list[float] = []
        for begin, row in zip(begins.reshape(-1, fan), limits.reshape(-1, fan), strict=True):
            folded = served(shared(begin, sizes, row, times.node), times.fold)
            enough = max(1, math.ceil(times.quorum * fan))
            results.append(float(np.partition(folded, enough - 1)[enough - 1]))
        return np.array(results)

    @staticmethod
    def _outcome(settings: Settings, seconds: float, times: _Times) -> Outcome:
        nodes = sum(math.prod(settings.fans[:level]) for level in range(len(settings.fans)))
        folded = sum(math.prod(settings.fans[: level + 1]) for level in range(len(settings.fans)))
        plain = _Times(settings)
        wire = plain.wire / 1e9
        return Outcome(
            seconds=seconds,
            root_gb=2 * settings.fans[0] * wire,
            node_gb=2 * settings.fans[-1] * wire,
            disk_gb=(2 * settings.fans[-1] + 2) * wire,
            wide_area_tb=2 * settings.sites * wire / 1e3,
            cpu_hours=(folded * plain.fold + nodes * plain.encode) / 3600,
        )


class _Times:
    """What a node takes for one message; nothing for what is free."""

    def __init__(self, settings: Settings) -> None:
        free, service = settings.free, settings.service
        network = 1e15 if "networks" in free else settings.network
        self.node = min(network, 1e15 if "brokers" in free else settings.broker)
        self.wire = settings.wire
        self.quorum = settings.quorum
        self.fold = 0.0 if "folding" in free else service.fixed + service.fold * settings.model_gb
        self.encode = 0.0 if "encoding" in free else service.fixed + service.publish * settings.model_gb
