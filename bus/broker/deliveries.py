"""Hands messages to consumers and takes the settlements.

Every change of who has what is committed before anyone outside hears of it: a delivery before it is handed
over (so that its attempt is counted whatever happens), a settlement before it is confirmed. Only deliveries
of open messages are kept in memory; they are committed in the transaction that seals the message.

A pull is one transaction: the store finds the messages and notes them. It stands in one queue with what lists
messages, and is put there as soon as a message it may want is; so under load a message is listed and handed
over by the same flush of the disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from tensorbus.bus.consumers import MAX_ACK_PENDING, MAX_ACK_WAIT, MAX_INLINE, DeliveryInfo
from tensorbus.bus.messages import MessageInfo
from tensorbus.bus.stores.values import HandedOver, HandOver, StoredMessage
from tensorbus.bus.topics import is_literal, matches
from tensorbus.errors import Conflict, InvalidRequest, NotFound, StoreDamaged, TensorbusError

from .consumer import Consumer
from .dead_letters import DeadLetters
from .delivery_host import DeliveryHost
from .frame_source import FrameSource
from .open_message import OpenMessage, Phase
from .pending import Pending
from .pushing import Push, Sink, Wish
from .verification import Verification, check_size

MAX_PULL = 256
"""Deliveries in one pull, and tokens in one settlement."""
MAX_REASON = 1000
"""Characters of why a worker refuses a message."""

_WINDOW = 2000
"""Messages of a log that one transaction looks through for a filter with wildcards; see `_take_new`."""


class Deliveries:
    """Pulls and settlements on the consumers of a broker.

    Attributes:
        delivered, acked: totals since the start.
        closing: whether the broker is.
    """

    def __init__(
        self, host: DeliveryHost, dead_letters: DeadLetters, open_messages: Mapping[str, OpenMessage]
    ) -> None:
        self._host = host
        self._store = host.store
        self._consumers = host.consumers
        self._now = host.clock.monotonic
        self._dead_letters = dead_letters
        self._open = open_messages
        self.closing = False
        self.delivered = 0
        self.acked = 0

    def close(self) -> None:
        """Let all pulls and streams end with what they have, which is nothing."""
        self.closing = True
        self._consumers.wake_all()

    # --- handing over --------------------------------------------------------------------------------

    async def pull(self, name: str, limit: int, wait: float, follow: bool, inline: int) -> list[DeliveryInfo]:
        """See ``Broker.pull``."""
        if not 1 <= limit <= MAX_PULL:
            raise InvalidRequest(f"a pull takes 1 to {MAX_PULL} deliveries, not {limit}")
        _check_inline(inline)
        consumer = self._consumers.get(name)
        with self._waiting(consumer):
            return await self._pull(consumer, limit, self._now() + wait, follow, inline)

    def push(self, name: str, wish: Wish, sink: Sink) -> Push:
        """See ``Broker.push``."""
        if not 1 <= wish.limit <= MAX_ACK_PENDING:
            raise InvalidRequest(
                f"a stream has 1 to {MAX_ACK_PENDING} unsettled deliveries, not {wish.limit}"
            )
        _check_inline(wish.inline)
        consumer = self._consumers.get(name)
        push = Push(self, consumer, self._host.clock, wish, sink)
        push.over = self._host.workers.start(self._pushing(consumer, push))
        return push

    async def _pushing(self, consumer: Consumer, push: Push) -> None:
        with self._waiting(consumer):
            await push.run()

    @contextmanager
    def _waiting(self, consumer: Consumer) -> Generator[None]:
        """Somebody waits for deliveries."""
        consumer.pulls += 1
        try:
            yield
        finally:
            consumer.pulls -= 1
            consumer.used = self._now()

    async def _pull(
        self, consumer: Consumer, limit: int, deadline: float, follow: bool, inline: int
    ) -> list[DeliveryInfo]:
        while True:
            seen = consumer.changed.version
            taken = await self._take_or_give_back(consumer, limit, follow, inline)
            left = deadline - self._now()
            if taken or left <= 0 or self.closing:
                return taken
            if consumer.deleted:
                raise NotFound(f"consumer {consumer.name!r} was deleted")
            due = consumer.next_due(self._now(), follow)
            await consumer.changed.wait(seen, left if due is None else max(0.0, min(left, due - self._now())))

    async def _take_or_give_back(
        self, consumer: Consumer, limit: int, follow: bool, inline: int
    ) -> list[DeliveryInfo]:
        """What was taken for a caller who is gone meanwhile is given back at once."""
        taking = self._host.workers.start(self.take(consumer, limit, follow, inline))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            taking.add_done_callback(partial(self._taken_for_nobody, consumer))
            raise

    def _taken_for_nobody(self, consumer: Consumer, taking: asyncio.Task[list[DeliveryInfo]]) -> None:
        if not taking.cancelled() and taking.exception() is None:
            self.give_back(consumer, taking.result())

    def give_back(self, consumer: Consumer, deliveries: Sequence[DeliveryInfo]) -> None:
        """Nobody has seen these: their attempt does not count."""
        returned: list[Pending] = []
        for delivery in deliveries:
            if (pending := consumer.still_held(delivery.token)) is not None:
                consumer.give_back(pending, due=0.0, unread=True)
                returned.append(pending)
        if returned:
            # After a crash it shall not count either: it may have been the last one.
            self._host.workers.start(self._note(consumer, returned))

    async def take(self, consumer: Consumer, limit: int, follow: bool, inline: int) -> list[DeliveryInfo]:
        """What there is now, up to ``limit``; to be carried through, whoever is cancelled."""
        async with consumer.taking:
            if consumer.deleted:
                return []
            taken: list[DeliveryInfo] = []
            # A look into the store is a turn of the thread that commits, so it is not taken for nothing.
            if consumer.has_news(self._now()):
                await self._dead_letters.bury_spent(consumer)
                again = self._again(consumer, limit, follow)
                taken = await self._take_sealed(consumer, again, limit, inline)
            if follow:
                taken += self._followed(consumer, limit - len(taken))
        self.delivered += len(taken)
        return taken

    def _again(self, consumer: Consumer, limit: int, follow: bool) -> list[Pending]:
        """What was given back or ran out of time, and is to be handed over once more."""
        due = consumer.due(self._now(), follow)
        return [each for each in due if not consumer.is_spent(each)][:limit]

    async def _take_sealed(
        self, consumer: Consumer, again: list[Pending], limit: int, inline: int
    ) -> list[DeliveryInfo]:
        """Hand over ``again``, and the next new messages in the log."""
        before = [replace(pending) for pending in again]
        now = self._now()
        for pending in again:
            consumer.hand(pending, now)
        sealed = [pending for pending in again if pending.seq is not None]
        wanted = max(0, min(limit - len(again), consumer.room))
        if not again and not wanted:
            return []
        announced = consumer.announced
        try:
            found = await self._commit(consumer, sealed, wanted, inline)
        except BaseException:
            for pending in again:
                consumer.give_back(pending, due=0.0, unread=True)
            raise
        taken: list[DeliveryInfo] = []
        # Those that fit no more are as they were; open ones are the last in ``again``.
        fitting, left = sealed[: len(found.again)], before[len(found.again) : len(sealed)]
        for each in left:
            consumer.not_handed(each)
        self._host.measures.redelivered += len(again) - len(left)
        for pending, message in zip(fitting, found.again, strict=True):
            if message is None:
                consumer.dropped(pending.message)
            elif consumer.pending.get(pending.message) is pending:
                taken += self._delivery(consumer, pending, message)
        taken += [
            self._open_delivery(consumer, pending) for pending in again if pending.message in self._open
        ]
        now, wall = self._now(), self._host.clock.wall()
        for message in found.new:
            info = message.info
            pending = Pending(info.id, info.seq, 0, now, held=False)
            consumer.pending[info.id] = pending
            consumer.hand(pending, now)
            taken += self._delivery(consumer, pending, message)
            if info.sealed is not None:
                self._host.measures.handover.observe(wall - info.sealed.timestamp())
        consumer.advance(found.position)
        if found.complete:
            consumer.looked = announced
        return taken

    async def _commit(
        self, consumer: Consumer, again: Sequence[Pending], wanted: int, inline: int
    ) -> HandedOver:
        """One transaction, as a rule.

        A filter with wildcards has no index, and the transaction holds up all others while it looks. So it
        looks at a part of the log only; if there is nothing in it, a reader finds where to go on.
        """
        pattern = consumer.config.filter
        window = 1 << 62 if pattern == ">" or is_literal(pattern) else _WINDOW
        now, wall = self._now(), self._host.clock.wall()
        rows = tuple(consumer.stored(pending, now, wall) for pending in again)
        due = wall + consumer.config.wait(1)
        position = consumer.position
        while True:
            order = HandOver(
                consumer.uid, consumer.name, pattern, rows, position, window, wanted, due, inline
            )
            found = await self._store.take(order)
            if found.new or rows or not wanted or found.position < position + window:
                return found
            position = await self._store.next_match(pattern, found.position) - 1

    def _delivery(self, consumer: Consumer, pending: Pending, message: StoredMessage) -> list[DeliveryInfo]:
        """The delivery; none if its frames came along and are not what was stored."""
        info, frames = message.info, message.frames
        if frames is not None:
            try:
                _verify(info, FrameSource(frames))
            except StoreDamaged as damage:
                self._host.damaged(info.id, str(damage))
                return []
        return [DeliveryInfo(consumer.token(pending), consumer.name, pending.tries, info, frames)]

    def _open_delivery(self, consumer: Consumer, pending: Pending) -> DeliveryInfo:
        info = self._open[pending.message].info
        return DeliveryInfo(consumer.token(pending), consumer.name, pending.tries, info)

    def _followed(self, consumer: Consumer, limit: int) -> list[DeliveryInfo]:
        """Messages that are being published."""
        taken: list[DeliveryInfo] = []
        now = self._now()
        for message in self._open.values():
            if len(taken) == limit or consumer.room <= 0:
                break
            if message.phase is not Phase.OPEN or message.envelope is None or consumer.knows(message.id):
                continue
            if matches(consumer.config.filter, message.topic):
                pending = Pending(message.id, None, 0, now, held=False)
                consumer.pending[message.id] = pending
                self._consumers.followed(consumer, message.id)
                consumer.hand(pending, now)
                taken.append(self._open_delivery(consumer, pending))
        return taken

    # --- settling ------------------------------------------------------------------------------------

    async def ack(self, name: str, tokens: Sequence[str]) -> list[TensorbusError | None]:
        """See ``Broker.ack_all``."""
        _check_count(tokens)
        outcomes = await self._host.workers.finish(self._ack(name, tokens))
        self.acked += outcomes.count(None)
        return outcomes

    async def term(self, name: str, token: str, reason: str) -> None:
        """See ``Broker.term``."""
        if len(reason) > MAX_REASON:
            raise InvalidRequest(f"a reason has up to {MAX_REASON} characters, not {len(reason)}")
        await self._host.workers.finish(self._term(name, token, reason))

    async def nak(
        self, name: str, tokens: Sequence[str], delay: float, unread: bool
    ) -> list[TensorbusError | None]:
        """See ``Broker.nak_all``."""
        _check_count(tokens)
        if not 0 <= delay <= MAX_ACK_WAIT:
            raise InvalidRequest(f"the delay must be 0 to {MAX_ACK_WAIT:.0f} seconds, not {delay!r}")
        return await self._host.workers.finish(self._nak(name, tokens, delay, unread))

    async def in_progress(self, name: str, tokens: Sequence[str]) -> list[TensorbusError | None]:
        """See ``Broker.in_progress_all``."""
        _check_count(tokens)
        return await self._host.workers.finish(self._in_progress(name, tokens))

    async def _ack(self, name: str, tokens: Sequence[str]) -> list[TensorbusError | None]:
        consumer = self._used(name)
        outcomes: list[TensorbusError | None] = []
        settling: list[Pending] = []
        for token in tokens:
            try:
                pending = await self._held(consumer, token)
                if pending.seq is None:
                    raise Conflict(
                        f"message {pending.message} is still being published; settle it when it is sealed"
                    )
            except TensorbusError as problem:
                outcomes.append(problem)
                continue
            pending.settling = True
            settling.append(pending)
            outcomes.append(None)
        if not settling:
            return outcomes
        try:
            now, wall = self._now(), self._host.clock.wall()
            rows = [consumer.stored(pending, now, wall) for pending in settling]
            await self._store.settle(consumer.uid, consumer.position, rows)
        except BaseException:
            for pending in settling:
                pending.settling = False
            raise
        for pending in settling:
            consumer.settled(pending)
        self._host.settled([pending.message for pending in settling])
        return outcomes

    async def _term(self, name: str, token: str, reason: str) -> None:
        consumer = self._used(name)
        pending = await self._held(consumer, token)
        if pending.seq is None:
            # It is not stored yet, and may never be: there is nothing to make a letter of.
            consumer.settled(pending)
            return
        await self._dead_letters.bury(consumer, pending, reason or "refused")

    async def _nak(
        self, name: str, tokens: Sequence[str], delay: float, unread: bool
    ) -> list[TensorbusError | None]:
        consumer = self._used(name)

        def give_back(pending: Pending) -> None:
            consumer.give_back(pending, self._now() + delay, unread)
            if consumer.is_spent(pending):
                consumer.set_due(pending, self._now())  # there is nothing to wait for

        found, outcomes = await self._each_held(consumer, tokens, give_back)
        await self._dead_letters.bury_spent(consumer)
        await self._note(consumer, found)
        return outcomes

    async def _in_progress(self, name: str, tokens: Sequence[str]) -> list[TensorbusError | None]:
        consumer = self._used(name)

        def prolong(pending: Pending) -> None:
            consumer.set_due(pending, self._now() + consumer.config.wait(pending.tries))

        found, outcomes = await self._each_held(consumer, tokens, prolong)
        await self._note(consumer, found)
        consumer.changed.notify()
        return outcomes

    async def _note(self, consumer: Consumer, pendings: Sequence[Pending]) -> None:
        """Commit deliveries of sealed messages as they are now, unless they are settled already."""
        now, wall = self._now(), self._host.clock.wall()
        rows = [
            consumer.stored(pending, now, wall)
            for pending in pendings
            if pending.seq is not None
            and not pending.settling  # its end is on its way to the store, and must stay the last word
            and consumer.pending.get(pending.message) is pending
        ]
        if rows:
            await self._store.note(rows)

    def _used(self, name: str) -> Consumer:
        consumer = self._consumers.get(name)
        consumer.used = self._now()
        return consumer

    async def _each_held(
        self, consumer: Consumer, tokens: Sequence[str], change: Callable[[Pending], None]
    ) -> tuple[list[Pending], list[TensorbusError | None]]:
        """Change the deliveries that are still to be settled; what is wrong with each of the others."""
        found: list[Pending] = []
        outcomes: list[TensorbusError | None] = []
        for token in tokens:
            try:
                pending = await self._held(consumer, token)
            except TensorbusError as problem:
                outcomes.append(problem)
                continue
            change(pending)
            found.append(pending)
            outcomes.append(None)
        return found, outcomes

    async def _held(self, consumer: Consumer, token: str) -> Pending:
        """The delivery of a token; while its message is being sealed it must not change, so wait."""
        while True:
            pending = consumer.held(token)
            message = self._open.get(pending.message)
            if message is None or message.phase is not Phase.SEALING:
                return pending
            await message.end()


def _verify(info: MessageInfo, source: FrameSource) -> None:
    """Frames go out only as they were stored. Raises StoreDamaged."""
    check_size(source, info.bytes)
    check = Verification(source, info.bytes, info.digest)
    while check.verified < info.bytes:
        check.ahead(check.verified)


def _check_inline(inline: int) -> None:
    if not 0 <= inline <= MAX_INLINE:
        raise InvalidRequest(f"bodies of up to {MAX_INLINE} bytes may come inline, not {inline}")


def _check_count(tokens: Sequence[str]) -> None:
    if not 1 <= len(tokens) <= MAX_PULL:
        raise InvalidRequest(f"1 to {MAX_PULL} deliveries may be settled at a time, not {len(tokens)}")
