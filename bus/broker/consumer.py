"""The state of one durable consumer, in memory; what of it must survive is in the store. No I/O.

A consumer's position is the seq up to which everything was handed over at least once. What was handed over
and not settled is *pending*, at most ``max_ack_pending``. A message handed out while it was open has no seq
yet, and gets one beyond the position; if it is settled before the position comes there, it is *done ahead*.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import re
import secrets
from collections.abc import Iterator

from tensorbus.bus.activity import Redelivery, Trouble
from tensorbus.bus.consumers import ConsumerConfig, dead_letter_topic
from tensorbus.bus.stores.values import StoredConsumer, StoredDelivery
from tensorbus.errors import AlreadySettled, DeliveryExpired, NotFound

from .pending import Pending, return_credit
from .wakeup import Wakeup

_TOKEN = re.compile(r"([0-9a-f]{8})([0-9a-f]{32})([0-9a-f]{1,8})", re.ASCII)
_TOKEN_MESSAGE = slice(8, 40)
_EXAMPLES = 5


def new_uid() -> str:
    """Eight hex digits."""
    return secrets.token_hex(4)


class Consumer:
    """One durable consumer; belongs to the event loop.

    Attributes:
        done_ahead: messages settled beyond the position, with their seq; None for one refused while open.
        changed: notified when a pull may find something new.
        taking: held by the pull that is choosing messages, so that no two choose the same.
        used: when somebody last asked something of it, on the broker's monotonic clock.
        pulls: how many pulls and streams are waiting on it.
        announced: counts up when a message that it wants may stand in the log, or in the queue for it.
        looked: ``announced`` when somebody last looked and found no more.
        listed: the highest seq known to be one that it wants.
    """

    def __init__(self, stored: StoredConsumer, now: float, wall: float) -> None:
        self.name = stored.name
        self.uid = stored.uid
        self.config: ConsumerConfig = stored.config
        self.owner = stored.owner
        self.created = stored.created
        self.position = stored.position
        self.pending: dict[str, Pending] = {}
        self.done_ahead: dict[str, int | None] = {}
        self.changed = Wakeup()
        self.taking = asyncio.Lock()
        self.deleted = False
        self.used = now
        self.pulls = 0
        self.announced = 0
        self.looked = -1
        self.listed = 0
        self._earliest = math.inf
        for delivery in stored.deliveries:
            self.load(delivery, now, wall)

    def load(self, delivery: StoredDelivery, now: float, wall: float) -> None:
        """Take up a delivery as the store has it; one that was never handed over is due."""
        if not delivery.settled:
            due = now + max(0.0, delivery.due - wall)
            self._earliest = min(self._earliest, due)
            self.pending[delivery.message] = Pending(
                message=delivery.message,
                seq=delivery.seq,
                attempt=delivery.attempt,
                due=due,
                held=delivery.attempt > 0,
                returned=delivery.returned,
            )
        elif delivery.seq > self.position:
            self.done_ahead[delivery.message] = delivery.seq

    @property
    def dead_letter(self) -> str:
        """The topic of its dead letters."""
        return self.config.dead_letter or dead_letter_topic(self.name)

    def trouble(self, now: float) -> Trouble:
        """What it has difficulties with."""
        again = [pending for pending in self.pending.values() if pending.attempt > 1]
        worst = heapq.nlargest(_EXAMPLES, again, key=lambda pending: pending.attempt)
        examples = (
            Redelivery(pending.message, pending.attempt, max(0.0, pending.due - now), pending.held)
            for pending in worst
        )
        return Trouble(self.dead_letter, len(again), tuple(examples))

    def inactive(self, now: float) -> bool:
        """Whether nobody has used it for longer than it is kept unused."""
        threshold = self.config.inactive_threshold
        return threshold is not None and not self.pulls and now - self.used >= threshold

    # --- tokens --------------------------------------------------------------------------------------

    def token(self, pending: Pending) -> str:
        """Names this hand-over of the message to this consumer; another attempt has another token."""
        return f"{self.uid}{pending.message}{pending.attempt:x}"

    def held(self, token: str) -> Pending:
        """The delivery of ``token``, if it is still to be settled.

        Raises:
            NotFound: it is not a token of this consumer.
            AlreadySettled: it was settled. DeliveryExpired: it was given back, or has been handed over again.
        """
        parts = _TOKEN.fullmatch(token)
        if parts is None or parts[1] != self.uid:
            raise NotFound(f"consumer {self.name} has no delivery with the token {token[:80]!r}")
        attempt = int(parts[3], 16)
        pending = self.pending.get(parts[2])
        if pending is not None and attempt > pending.attempt:
            raise NotFound(f"consumer {self.name} has no delivery with the token {token[:80]!r}")
        if pending is None or pending.settling:
            raise AlreadySettled(f"this delivery of message {parts[2]} was settled before")
        if attempt < pending.attempt:
            raise DeliveryExpired(
                f"this delivery of message {parts[2]} ran out of time; it is with another worker now"
            )
        if not pending.held:
            raise DeliveryExpired(f"this delivery of message {parts[2]} was given back before")
        return pending

    def still_held(self, token: str) -> Pending | None:
        """The delivery of a token that was given out, unless it is settled, or another's now."""
        pending = self.pending.get(token[_TOKEN_MESSAGE])
        if pending is None or not pending.held or pending.settling or self.token(pending) != token:
            return None
        return pending

    # --- what is due ---------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """How many more messages may be pending."""
        return self.config.max_ack_pending - len(self.pending)

    def may_be_due(self, now: float) -> bool:
        """Whether to look for what is due; mostly it need not be looked for among thousands."""
        if self._earliest <= now:
            self._earliest = min((each.due for each in self.pending.values()), default=math.inf)
        return self._earliest <= now

    def has_news(self, now: float) -> bool:
        """Whether there may be sealed messages to hand over."""
        return self.announced != self.looked or self.listed > self.position or self.may_be_due(now)

    def due(self, now: float, follow: bool) -> list[Pending]:
        """What may be handed over again now, in seq order, open ones last."""
        if not self.may_be_due(now):
            return []
        ready = [pending for pending in self._redeliverable(follow) if pending.due <= now]
        return sorted(ready, key=lambda pending: (pending.seq is None, pending.seq or 0))

    def spent(self, now: float) -> list[Pending]:
        """What should be handed over again now, but has used up its attempts."""
        if self.config.max_deliver is None or not self.may_be_due(now):
            return []
        waiting = self._redeliverable(follow=False)
        return [pending for pending in waiting if pending.due <= now and self.is_spent(pending)]

    def is_spent(self, pending: Pending) -> bool:
        """Whether a delivery has used up its attempts; that of an open message has not, whatever they are."""
        limit = self.config.max_deliver
        return limit is not None and pending.seq is not None and pending.tries >= limit

    def next_due(self, now: float, follow: bool) -> float | None:
        """When something will be due again, or a little before."""
        if self.pending and self._earliest > now:
            return self._earliest
        return min((pending.due for pending in self._redeliverable(follow)), default=None)

    def _redeliverable(self, follow: bool) -> Iterator[Pending]:
        for pending in self.pending.values():
            if not pending.settling and not pending.sealing and (follow or pending.seq is not None):
                yield pending

    # --- changes -------------------------------------------------------------------------------------

    def knows(self, message_id: str) -> bool:
        """Whether a message was handed over already."""
        return message_id in self.pending or message_id in self.done_ahead

    def advance(self, position: int) -> None:
        """Everything up to ``position`` has been handed over or does not match."""
        if position > self.position:
            self.position = position
            passed = [name for name, seq in self.done_ahead.items() if seq is not None and seq <= position]
            for name in passed:
                del self.done_ahead[name]

    def settled(self, pending: Pending) -> None:
        """A delivery is settled for good."""
        self.pending.pop(pending.message, None)
        return_credit(pending)
        if pending.seq is None or pending.seq > self.position:
            self.done_ahead[pending.message] = pending.seq
        self.changed.notify()

    def hand(self, pending: Pending, now: float) -> None:
        """A delivery is handed over (again)."""
        pending.attempt += 1
        pending.held = True
        return_credit(pending)
        self.set_due(pending, now + self.config.wait(pending.tries))

    def set_due(self, pending: Pending, due: float) -> None:
        """When a delivery may be handed over again."""
        pending.due = due
        self._earliest = min(self._earliest, due)

    def not_handed(self, before: Pending) -> None:
        """A delivery is as it was before it was to be handed over again."""
        if (pending := self.pending.get(before.message)) is not None:
            pending.attempt, pending.held = before.attempt, before.held
            self.set_due(pending, before.due)
            self.changed.notify()

    def give_back(self, pending: Pending, due: float, unread: bool = False) -> None:
        """A delivery may be handed over again from ``due`` on; this attempt does not count if ``unread``."""
        pending.held = False
        return_credit(pending)
        self.set_due(pending, due)
        pending.returned += unread
        self.changed.notify()

    def sealed(self, message_id: str, seq: int) -> None:
        """An open message that was handed over has got its seq."""
        if (pending := self.pending.get(message_id)) is not None:
            pending.seq = seq
            pending.sealing = False
        elif message_id in self.done_ahead and seq > self.position:
            self.done_ahead[message_id] = seq
        else:
            self.done_ahead.pop(message_id, None)

    def dropped(self, message_id: str) -> None:
        """A message is gone."""
        self.done_ahead.pop(message_id, None)
        if (pending := self.pending.pop(message_id, None)) is not None:
            return_credit(pending)
            self.changed.notify()

    def stored(self, pending: Pending, now: float, wall: float) -> StoredDelivery:
        """The delivery as the store keeps it."""
        return StoredDelivery(
            consumer=self.uid,
            message=pending.message,
            seq=pending.seq or 0,
            attempt=pending.attempt,
            due=wall + pending.due - now,
            returned=pending.returned,
        )
