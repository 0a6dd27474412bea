"""Outgoing: what is to be published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tensorbus.bus.messages import HeaderValue
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.streaming.sources import Source


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What is to be published.

    ``key_made`` says that the key was made up for this call, so that a retry after a lost answer does not
    store the message twice; ``at_hand`` that the container is small and in memory.
    """

    topic: str
    source: Source
    pipeline: Pipeline
    headers: Mapping[str, HeaderValue]
    key: str
    key_made: bool = False
    at_hand: bool = False
