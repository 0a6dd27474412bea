"""Pushing: deliveries that go out as they come, for as long as somebody reads.

Strategy. A stream is a loop that takes what there is, as a pull does, and gives it to its sink. It takes
nothing while the sink is full or its reader has as many unsettled deliveries as it wants, so that others get
what it cannot use. What was given to the sink is in its reader's hands: if the reader goes away it is handed
over again when its time is over, since it may well be settled yet, on another connection. What was taken but
not given to the sink goes back at once, and that attempt does not count.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tensorbus.bus.clock import Clock
from tensorbus.bus.consumers import DeliveryInfo
from tensorbus.errors import NotFound

from .consumer import Consumer
from .pending import Credit

if TYPE_CHECKING:
    from .deliveries import Deliveries

MAX_AT_ONCE = 256
"""Deliveries that are given to a sink at a time."""
_LEASES_KEPT = 3
"""How often, within the time of a delivery, it is prolonged while the sink is still busy with it."""
_SHORTEST_WAIT = 0.01
"""Seconds; what is due and cannot be handed over now is not looked at all the time."""


class Sink(Protocol):
    """Where the deliveries of a stream go."""

    @property
    def full(self) -> bool:
        """Whether the reader has to catch up first."""
        ...

    def put(self, deliveries: Sequence[DeliveryInfo]) -> None:
        """Send them; takes them whether it is full or not."""
        ...

    def resting(self) -> None:
        """There is nothing more to hand over now."""
        ...

    async def room(self) -> None:
        """Until it is not full. Raises OSError, or TransferStalled if the reader takes nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Wish:
    """What a stream should carry.

    Attributes:
        limit: of deliveries that it carried and that are not settled, 1 to 10,000.
        follow, inline: as of ``Broker.pull``.
    """

    limit: int
    follow: bool = False
    inline: int = 0


class Push:
    """One stream; belongs to the event loop.

    Attributes:
        over: done when the stream is. Its exception is why: NotFound if the consumer was deleted, what the
            sink raised, or what the store did.
        resting: whether there is nothing to hand over.
    """

    over: asyncio.Task[None]

    def __init__(
        self, deliveries: Deliveries, consumer: Consumer, clock: Clock, wish: Wish, sink: Sink
    ) -> None:
        self._deliveries = deliveries
        self._consumer = consumer
        self._now = clock.monotonic
        self._wish = wish
        self._sink = sink
        self._credit = Credit(wish.limit)
        self._ended = False
        self._gone = False
        self._catching_up: asyncio.Future[None] | None = None
        self.resting = False

    @property
    def consumer(self) -> str:
        """The name of the consumer."""
        return self._consumer.name

    def end(self) -> None:
        """Take nothing more; what was taken is still given to the sink."""
        self._ended = True
        self._consumer.changed.notify()

    def leave(self) -> None:
        """The reader is gone: the sink gets nothing more."""
        self._gone = True
        if self._catching_up is not None:
            self._catching_up.cancel()
        self.end()

    async def run(self) -> None:
        """Until the stream is over; to be carried through."""
        try:
            while not self._ended and not self._deliveries.closing:
                seen = self._consumer.changed.version
                if self._consumer.deleted:
                    raise NotFound(f"consumer {self._consumer.name!r} was deleted")
                if not await self._hand_over():
                    self.resting = True
                    self._sink.resting()
                    await self._consumer.changed.wait(seen, self._patience())
                    self.resting = False
        except asyncio.CancelledError:
            if not self._gone:
                raise
        finally:
            self._credit.close()

    async def _hand_over(self) -> bool:
        """Whether there was anything."""
        consumer, wish = self._consumer, self._wish
        now = self._now()
        if self._credit.left <= 0:
            self._credit.expire(now)
        limit = min(self._credit.left, MAX_AT_ONCE)
        if limit <= 0 or not (wish.follow or consumer.has_news(now)):
            return False
        taken = await self._deliveries.take(consumer, limit, wish.follow, wish.inline)
        if self._gone:
            self._deliveries.give_back(consumer, taken)
            return False
        if not taken:
            return False
        for delivery in taken:
            if (pending := consumer.still_held(delivery.token)) is not None:
                self._credit.take(pending)
        self._sink.put(taken)
        if self._sink.full:
            await self._catch_up(taken)
        return True

    async def _catch_up(self, taken: Sequence[DeliveryInfo]) -> None:
        """Until the sink is not full; the time that the reader has for these begins when they have gone."""
        consumer = self._consumer
        self._catching_up = asyncio.ensure_future(self._sink.room())
        step = consumer.config.wait(1) / _LEASES_KEPT
        while not self._catching_up.done():
            await asyncio.wait([self._catching_up], timeout=step)
            now = self._now()
            for delivery in taken:
                if (pending := consumer.still_held(delivery.token)) is not None:
                    consumer.set_due(pending, now + consumer.config.wait(pending.tries))
        catching_up, self._catching_up = self._catching_up, None
        await catching_up

    def _patience(self) -> float | None:
        """Seconds until there may be something though nobody says so."""
        now = self._now()
        if self._credit.left > 0:
            due = self._consumer.next_due(now, self._wish.follow)
        else:
            due = self._credit.next_due()
        return None if due is None else max(_SHORTEST_WAIT, due - now)
