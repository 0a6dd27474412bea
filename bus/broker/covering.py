"""Sees that there is room for what comes of a message, where that is limited."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tensorbus.errors import QuotaExceeded, TensorbusError

from .inflow import Inflow
from .open_message import OpenMessage
from .workers import Workers


class Covering:
    """Extends the lease of one message as it grows; belongs to the event loop.

    Args:
        look_up: look again what is stored beside the message in its quotas.
    """

    def __init__(
        self, message: OpenMessage, workers: Workers, look_up: Callable[[OpenMessage], Awaitable[None]]
    ) -> None:
        self._message = message
        self._workers = workers
        self._look_up = look_up
        self._looking: asyncio.Task[None] | None = None

    def cover(self, inflow: Inflow, covered: Callable[[], None]) -> None:
        """More has come: ``covered`` is called if there is room for it, at once or later.

        Else the inflow fails.
        """
        if self._looking is not None:
            return
        if self._message.lease is not None:
            try:
                self._message.lease.cover(inflow.intake.size)
            except QuotaExceeded:
                self._looking = self._workers.start(self._look_again(inflow, covered))
                return
        covered()

    async def looked(self) -> bool:
        """Wait until it is known whether there is room for all that has come; False if it was known."""
        if self._looking is None:
            return False
        await asyncio.wait([self._looking])
        return True

    async def _look_again(self, inflow: Inflow, covered: Callable[[], None]) -> None:
        """There is no room by what was stored when something last began; but some of it may be gone."""
        try:
            await self._look_up(self._message)
            if self._message.lease is not None:
                self._message.lease.cover(inflow.intake.size)
            covered()
        except TensorbusError as problem:
            inflow.fail(problem)
        finally:
            self._looking = None
