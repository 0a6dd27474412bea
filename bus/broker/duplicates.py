"""Idempotency keys are forgotten when their message is gone and their window is over."""

from __future__ import annotations

from tensorbus.bus.clock import Clock
from tensorbus.bus.stores.base import Store

from .retention import Retention

_BATCH = 1000


class Duplicates:
    """Forgets keys.

    Args:
        store: keeps them.
        retention: knows the policies, which may have windows of their own.
        clock: tells the time.
        window: seconds, for topics whose policy says nothing.
    """

    def __init__(self, store: Store, retention: Retention, clock: Clock, window: float) -> None:
        self._store = store
        self._retention = retention
        self._clock = clock
        self._window = window

    async def prune(self) -> None:
        """Forget what may be forgotten now."""
        now = self._clock.wall()
        for topic, oldest in (await self._store.topics_with_old_keys()).items():
            before = now - self._window_of(topic)
            if oldest < before:
                while await self._store.prune_keys(topic, before, _BATCH) == _BATCH:
                    pass

    def _window_of(self, topic: str) -> float:
        policy = self._retention.policy(topic)
        if policy is None or policy.config.duplicate_window is None:
            return self._window
        return policy.config.duplicate_window
