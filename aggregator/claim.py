"""Claim: which of several aggregator processes has a job. The last one that started has.

Strategy. Each says so once, when it starts, by a tiny message on a topic of its own; the broker's order of
them decides. Whoever finds a claim after its own ends. Consumers could not tell that: they have one name for
all, and whoever makes them while another does cannot know whose they are.
"""

from __future__ import annotations

import secrets
import time

from tensorbus.bus.client import Client
from tensorbus.errors import JobError

from .deleting import delete_all
from .job import claims_topic


class Claim:
    """Of one process on one job."""

    def __init__(self, bus: Client, job: str) -> None:
        self._bus = bus
        self._job = job
        self._by = secrets.token_hex(8)
        self._made = False

    async def hold(self) -> None:
        """Take the job over from whoever has it; once, later on as ``check``."""
        if self._made:
            await self.check()
            return
        headers = {"kind": "claim", "job": self._job, "by": self._by, "at": time.time()}
        key = f"{self._job}/claim-{self._by}"
        await self._bus.publish(claims_topic(self._job), b"", headers=headers, key=key)
        self._made = True
        await self._clear(mine=False)

    async def check(self) -> None:
        """Raises JobError: another aggregator has taken the job over."""
        async for info in self._bus.messages(claims_topic(self._job), newest_first=True):
            if info.headers.get("by") != self._by:
                raise JobError(f"another aggregator has taken over job {self._job!r}")
            return

    async def drop(self) -> None:
        """The job is over."""
        await self._clear(mine=True)

    async def _clear(self, *, mine: bool) -> None:
        """Delete the claims before this one, and this one too."""
        claims = [info async for info in self._bus.messages(claims_topic(self._job))]
        places = [place for place, info in enumerate(claims) if info.headers.get("by") == self._by]
        if places:
            await delete_all(self._bus, [info.id for info in claims[: places[0] + mine]])
