"""Feedback: the residuals that a client's publications use, one at a time.

What quantising left out of one message is added to the next, so messages that share residuals follow one
another: a publication waits until the one before it has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from weakref import WeakKeyDictionary

from tensorbus.codecs.pipeline import Pipeline
from tensorbus.codecs.residuals import MemoryResiduals, Residuals


class Feedback:
    """The residuals of a client's topics, in memory where the caller has no others."""

    def __init__(self) -> None:
        self._of_topic: dict[str, Residuals] = {}
        self._locks: WeakKeyDictionary[Residuals, asyncio.Lock] = WeakKeyDictionary()

    @asynccontextmanager
    async def turn(
        self, topic: str, pipeline: Pipeline, given: Residuals | None
    ) -> AsyncGenerator[Residuals | None]:
        """The residuals for one publication, nobody else's for as long; None if ``pipeline`` keeps none."""
        if not pipeline.keeps_errors:
            yield None
            return
        residuals = given if given is not None else self._of_topic.setdefault(topic, MemoryResiduals())
        async with self._locks.setdefault(residuals, asyncio.Lock()):
            yield residuals
