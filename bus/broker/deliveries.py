"""Hands messages to consumers and takes the settlements.

Every change of who has what is committed before anyone outside hears of it: a delivery before it is handed
over (so that its attempt is counted whatever happens), a settlement before it is confirmed. Only deliveries
of open messages are kept in memory; they are committed in the transaction that seals the message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial

from tensorbus.bus.clock import Clock
from tensorbus.bus.consumers import MAX_ACK_WAIT, DeliveryInfo
from tensorbus.bus.messages import MessageInfo
from tensorbus.bus.stores.base import Store
from tensorbus.bus.topics import matches
from tensorbus.errors import Conflict, InvalidRequest, NotFound

from .consumer import Consumer, Pending
from .consumers import Consumers
from .open_message import OpenMessage, Phase
from .workers import Workers

_Chosen = list[tuple[Pending, MessageInfo]]

MAX_PULL = 256
"""Deliveries in one pull."""


class Deliveries:
    """Pulls and settlements on the consumers of a broker.

    Attributes:
        delivered, acked: totals since the start.
    """

    def __init__(
        self,
        store: Store,
        consumers: Consumers,
        open_messages: Mapping[str, OpenMessage],
        workers: Workers,
        clock: Clock,
    ) -> None:
        self._store = store
        self._consumers = consumers
        self._open = open_messages
        self._workers = workers
        self._clock = clock
        self._closing = False
        self.delivered = 0
        self.acked = 0

    def close(self) -> None:
        """Let all pulls end with what they have, which is nothing."""
        self._closing = True
        self._consumers.wake_all()

    # --- handing over --------------------------------------------------------------------------------

    async def pull(self, name: str, limit: int, wait: float, follow: bool) -> list[DeliveryInfo]:
        """See ``Broker.pull``."""
        if not 1 <= limit <= MAX_PULL:
            raise InvalidRequest(f"a pull takes 1 to {MAX_PULL} deliveries, not {limit}")
        consumer = self._consumers.get(name)
        now = self._clock.monotonic
        deadline = now() + wait
        while True:
            seen = consumer.changed.version
            taken = await self._take_or_give_back(consumer, limit, follow)
            left = deadline - now()
            if taken or left <= 0 or self._closing:
                return taken
            if consumer.deleted:
                raise NotFound(f"consumer {name!r} was deleted")
            due = consumer.next_due(follow)
            await consumer.changed.wait(seen, left if due is None else max(0.0, min(left, due - now())))

    async def _take_or_give_back(self, consumer: Consumer, limit: int, follow: bool) -> list[DeliveryInfo]:
        """What was taken for a caller who is gone meanwhile is given back at once."""
        taking = self._workers.start(self._take(consumer, limit, follow))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            taking.add_done_callback(partial(self._give_back, consumer))
            raise

    def _give_back(self, consumer: Consumer, taking: asyncio.Task[list[DeliveryInfo]]) -> None:
        if taking.cancelled() or taking.exception() is not None:
            return
        for delivery in taking.result():
            pending = consumer.pending.get(delivery.message.id)
            if pending is not None and pending.attempt == delivery.attempt and not pending.settling:
                consumer.give_back(pending, due=0.0)

    async def _take(self, consumer: Consumer, limit: int, follow: bool) -> list[DeliveryInfo]:
        async with consumer.taking:
            if consumer.deleted:
                return []
            chosen = await self._again(consumer, limit, follow)
            await self._sealed(consumer, limit, chosen)
            if follow:
                self._followed(consumer, limit, chosen)
            await self._commit(consumer, [pending for pending, _ in chosen])
        self.delivered += len(chosen)
        return [
            DeliveryInfo(consumer.token(pending), consumer.name, pending.attempt, info)
            for pending, info in chosen
        ]

    async def _again(self, consumer: Consumer, limit: int, follow: bool) -> _Chosen:
        """What was given back, or ran out of time."""
        chosen: _Chosen = []
        for pending in consumer.due(self._clock.monotonic(), follow):
            if len(chosen) == limit:
                break
            info = await self._deliverable(pending)
            # The worker who had it may have settled it or asked for more time just now.
            now = self._clock.monotonic()
            if consumer.pending.get(pending.message) is not pending or pending.settling or pending.due > now:
                continue
            if info is None:
                consumer.dropped(pending.message)
            elif not pending.sealing:
                self._hand(consumer, pending)
                chosen.append((pending, info))
        return chosen

    async def _deliverable(self, pending: Pending) -> MessageInfo | None:
        if (message := self._open.get(pending.message)) is not None:
            return message.info
        if pending.message in self._store.damaged:
            return None
        return await self._store.message(pending.message)

    async def _sealed(self, consumer: Consumer, limit: int, chosen: _Chosen) -> None:
        """Add the next new messages in the log."""
        while (wanted := min(limit - len(chosen), consumer.room)) > 0:
            found, position = await self._store.scan(consumer.config.filter, consumer.position, wanted)
            for info in found:
                if not consumer.knows(info.id) and info.id not in self._store.damaged:
                    chosen.append((self._new(consumer, info), info))
            consumer.advance(position)
            if len(found) < wanted:
                break

    def _followed(self, consumer: Consumer, limit: int, chosen: _Chosen) -> None:
        """Add messages that are being published."""
        for message in self._open.values():
            if len(chosen) == limit or consumer.room <= 0:
                break
            if message.phase is not Phase.OPEN or message.envelope is None or consumer.knows(message.id):
                continue
            if matches(consumer.config.filter, message.topic):
                info = message.info
                chosen.append((self._new(consumer, info), info))

    def _new(self, consumer: Consumer, info: MessageInfo) -> Pending:
        pending = Pending(info.id, info.seq, 0, 0.0, held=False)
        consumer.pending[info.id] = pending
        self._hand(consumer, pending)
        return pending

    def _hand(self, consumer: Consumer, pending: Pending) -> None:
        pending.attempt += 1
        pending.held = True
        pending.due = self._clock.monotonic() + consumer.config.ack_wait

    async def _commit(self, consumer: Consumer, pendings: list[Pending]) -> None:
        try:
            await self._note(consumer, pendings)
        except BaseException:
            for pending in pendings:
                consumer.give_back(pending, due=0.0)
            raise

    async def _note(self, consumer: Consumer, pendings: list[Pending]) -> None:
        """Commit deliveries of sealed messages as they are now."""
        now, wall = self._clock.monotonic(), self._clock.wall()
        rows = [consumer.stored(pending, now, wall) for pending in pendings if pending.seq is not None]
        if rows:
            await self._store.hand_over(consumer.uid, consumer.position, rows)

    # --- settling ------------------------------------------------------------------------------------

    async def ack(self, name: str, token: str) -> None:
        """See ``Broker.ack``."""
        await self._workers.finish(self._settle(name, token, refuse=False))
        self.acked += 1

    async def term(self, name: str, token: str) -> None:
        """See ``Broker.term``."""
        await self._workers.finish(self._settle(name, token, refuse=True))

    async def nak(self, name: str, token: str, delay: float) -> None:
        """See ``Broker.nak``."""
        if not 0 <= delay <= MAX_ACK_WAIT:
            raise InvalidRequest(f"the delay must be 0 to {MAX_ACK_WAIT:.0f} seconds, not {delay!r}")
        await self._workers.finish(self._postpone(name, token, delay))

    async def in_progress(self, name: str, token: str) -> None:
        """See ``Broker.in_progress``."""
        await self._workers.finish(self._postpone(name, token, None))

    async def _settle(self, name: str, token: str, refuse: bool) -> None:
        consumer = self._consumers.get(name)
        pending = await self._held(consumer, token)
        if pending.seq is None:
            if not refuse:
                raise Conflict(
                    f"message {pending.message} is still being published; settle it when it is sealed"
                )
            consumer.settled(pending)
            return
        pending.settling = True
        try:
            now, wall = self._clock.monotonic(), self._clock.wall()
            await self._store.settle(consumer.uid, consumer.position, consumer.stored(pending, now, wall))
        except BaseException:
            pending.settling = False
            raise
        consumer.settled(pending)

    async def _postpone(self, name: str, token: str, delay: float | None) -> None:
        """Give a delivery back for ``delay`` seconds; None leaves it to its worker for ``ack_wait`` more."""
        consumer = self._consumers.get(name)
        pending = await self._held(consumer, token)
        now = self._clock.monotonic()
        if delay is None:
            pending.due = now + consumer.config.ack_wait
        else:
            pending.held = False
            pending.due = now + delay
        await self._note(consumer, [pending])
        consumer.changed.notify()

    async def _held(self, consumer: Consumer, token: str) -> Pending:
        """The delivery of a token; while its message is being sealed it must not change, so wait."""
        while True:
            pending = consumer.held(token)
            message = self._open.get(pending.message)
            if message is None or message.phase is not Phase.SEALING:
                return pending
            await message.end()
