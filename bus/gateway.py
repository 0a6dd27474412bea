"""One broker of several that share a store: it leads, or stands by and takes over."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets

from tensorbus.errors import TensorbusError

from .broker import Broker
from .broker.wakeup import Wakeup
from .stores.replicated import ReplicatedStore

_log = logging.getLogger("tensorbus.gateway")

_ASK = 1.0
"""Seconds between two questions who leads."""
_MISSED = 3
"""Questions without an answer after which a leader is taken for dead."""


class Gateway:
    """Watches who leads.

    Args:
        broker: on ``store``.
    """

    def __init__(self, broker: Broker, store: ReplicatedStore) -> None:
        self._broker = broker
        self._store = store
        self._url: str | None = None
        self._secret = secrets.token_urlsafe(32)
        self._moved = Wakeup()

    @property
    def leading(self) -> bool:
        """Whether this one does."""
        return self._broker.leading

    @property
    def url(self) -> str | None:
        """The address of the one that does, if it is known."""
        return self._url

    @property
    def secret(self) -> str:
        """What the one that leads has told the others: they show it when they store what it decides on.

        It is told with the address, over NATS: who may ask there may do everything with the store anyway.
        """
        return self._secret

    async def gone(self, url: str) -> None:
        """Until the one at ``url`` does not lead any more."""
        while self._url == url and not self.leading:
            await self._moved.wait(self._moved.version)

    def _leads(self, url: str | None, secret: str | None = None) -> None:
        self._secret = secret or self._secret
        if url != self._url:
            self._url = url
            self._moved.notify()

    async def watch(self, own: str) -> None:
        """Until this one cannot go on, and must be closed and made anew.

        Another broker has taken the lead from it, or it has missed something.
        ``own`` is where other brokers of the store can reach this one.
        """
        watching = asyncio.create_task(self._watch(own))
        over = asyncio.create_task(self._store.over.wait())
        try:
            await asyncio.wait([watching, over], return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()
        finally:
            for task in (watching, over):
                task.cancel()
            await asyncio.wait([watching, over])
        _log.warning("this broker begins anew")

    async def _watch(self, own: str) -> None:
        if not self._broker.leading:
            await self._stand_by()
        _log.info("this broker leads")
        self._secret = secrets.token_urlsafe(32)
        await self._store.log.announce(f"{own}#{self._secret}")
        await self._store.over.wait()

    async def _stand_by(self) -> None:
        missed = _MISSED - 1  # at the start, nobody may ever have led
        while True:
            said = await self._store.log.leader()
            if said is not None:
                found, _, secret = said.partition("#")
                if found != self._url:
                    _log.info("the broker at %s leads", found)
                self._leads(found, secret)
                missed = 0
            else:
                missed += 1
            if missed >= _MISSED:
                self._leads(None)
                # Not all at once: who is first is asked by the others in the next round.
                await asyncio.sleep(random.uniform(0, _ASK))  # noqa: S311 - no secret
                if await self._store.log.leader() is None and await self._take_over():
                    return
            await asyncio.sleep(_ASK)

    async def _take_over(self) -> bool:
        try:
            self._store.check_writable()
            return await self._broker.lead()
        except TensorbusError as problem:
            _log.warning("the lead cannot be taken: %s", problem)
            return False
