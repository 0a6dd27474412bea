"""The broker's chapter on what whoever runs it wants: damage, policies, and figures."""

from __future__ import annotations

from collections.abc import Callable

from tensorbus.bus.activity import Transfer, Trouble
from tensorbus.bus.damage import DamagePage, ScrubReport
from tensorbus.bus.messages import BrokerStats
from tensorbus.bus.policies import PolicyConfig, PolicyInfo
from tensorbus.errors import (
    InvalidRequest,
)

from .parts import LARGEST_PAGE, Parts
from .retention import Sees, everything


class Upkeep(Parts):
    """What keeps a broker whole, and says how it does."""

    async def damaged(self, after: int = 0, limit: int = 100) -> DamagePage:
        """Messages that are not delivered because their frames are damaged, by seq, behind ``after``.

        Raises InvalidRequest (limit not 1 to 1000).
        """
        if not 1 <= limit <= LARGEST_PAGE:
            raise InvalidRequest(f"a page has 1 to {LARGEST_PAGE} messages, not {limit}")
        return await self._damaged.page(after, limit)

    def scrub(self, rate: int | None = None) -> ScrubReport:
        """Begin to verify everything that is stored, at ``rate`` bytes per second at the most.

        Raises:
            Conflict: one is under way.
        """
        return self._scrubber.begin(rate)

    @property
    def scrubbed(self) -> ScrubReport:
        """How far the scrub is, or what the last one has found."""
        return self._scrubber.report

    async def scrub_end(self) -> ScrubReport:
        """The report of the scrub that is under way, when it is done."""
        return await self._scrubber.end()

    async def stop_scrub(self) -> ScrubReport:
        """End the scrub that is under way, if there is one; what it has found stays."""
        return await self._scrubber.stop()

    def check_writable(self) -> None:
        """Raise StoreReadOnly if messages can be read, but none be stored."""
        self._store.check_writable()

    async def put_policy(
        self,
        name: str,
        config: PolicyConfig,
        check: Callable[[PolicyConfig], None] | None = None,
        sees: Sees = everything,
    ) -> tuple[PolicyInfo, bool]:
        """Create or change a policy, and enforce it at once; the bool is "created".

        ``check`` gets the one that would be changed, and raises if it may not be. ``sees`` says of a filter
        whether the caller may know what has it: a Conflict names nothing else.

        Raises:
            InvalidName, InvalidRequest: what is wanted makes no sense.
            LimitExceeded: there are too many policies.
            Conflict: another policy has topics in common with it, or it is a work queue and its consumers
                would not be one for each message.
        """
        return await self._retention.put(name, config, check, sees)

    async def policy(self, name: str) -> PolicyInfo:
        """One policy. Raises NotFound."""
        return await self._retention.info(name)

    async def policies(self) -> list[PolicyInfo]:
        """All policies, by name."""
        return await self._retention.all()

    async def delete_policy(self, name: str) -> None:
        """Forget a policy: its topics keep what they hold from now on. Raises NotFound."""
        await self._retention.delete(name)

    async def stats(self) -> BrokerStats:
        """Figures for monitoring."""
        messages, stored = await self._store.totals()
        disk = await self._store.disk()
        return BrokerStats(
            messages=messages,
            bytes=stored,
            open_messages=len(self._open.messages),
            consumers=len(self._consumers),
            damaged=len(self._store.damaged),
            ack_pending=self._consumers.ack_pending,
            sealed_total=self._open.sealed,
            aborted_total=self._open.aborted,
            received_bytes_total=self._open.received,
            deliveries_total=self._deliveries.delivered,
            acks_total=self._deliveries.acked,
            parked_uploads=self._open.parked,
            disk_free=disk.free,
            disk_size=disk.size,
        )

    @property
    def activity(self) -> tuple[int, ...]:
        """Other numbers than before if messages, deliveries or transfers have moved; costs nearly nothing."""
        return (
            self._open.sealed,
            self._open.aborted,
            self._open.received,
            len(self._open.messages),
            self._deliveries.delivered,
            self._deliveries.acked,
            self.measures.redelivered,
            self.measures.dead,
            len(self._consumers),
            self._consumers.ack_pending,
        )

    def transfers(self) -> list[Transfer]:
        """Messages that are being published, in the order in which they began."""
        return self._open.transfers()

    def troubles(self) -> dict[str, Trouble]:
        """What each consumer, by name, has difficulties with."""
        return self._consumers.troubles()

    async def stored_by(self, owner: str) -> int:
        """Bytes of the messages that the holder of a token has stored."""
        return (await self._store.owner_usage(owner)).bytes
