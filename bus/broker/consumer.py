"""The state of one durable consumer, in memory; what of it must survive is in the store. No I/O.

A consumer's position is the seq up to which everything was handed over at least once. What was handed over
and not settled is *pending*, at most ``max_ack_pending``. A message handed out while it was open has no seq
yet, and gets one beyond the position; if it is settled before the position comes there, it is *done ahead*.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from tensorbus.bus.consumers import ConsumerConfig
from tensorbus.bus.stores.base import StoredConsumer, StoredDelivery
from tensorbus.errors import AlreadySettled, NotFound

from .wakeup import Wakeup

_TOKEN = re.compile(r"([0-9a-f]{8})([0-9a-f]{32})([0-9a-f]{1,8})", re.ASCII)


def new_uid() -> str:
    """Eight hex digits."""
    return secrets.token_hex(4)


@dataclass(slots=True)
class Pending:
    """A message that was handed over and is not settled.

    Attributes:
        seq: None while the message is open.
        attempt: how often it was handed over.
        due: on the event loop's clock; when it may be handed over again.
        held: by a worker; False after a nak.
        settling: its end is being committed.
        sealing: the message is being committed together with this delivery.
    """

    message: str
    seq: int | None
    attempt: int
    due: float
    held: bool
    settling: bool = False
    sealing: bool = False


class Consumer:
    """One durable consumer; belongs to the event loop.

    Attributes:
        done_ahead: messages settled beyond the position, with their seq; None for one refused while open.
        changed: notified when a pull may find something new.
        taking: held by the pull that is choosing messages, so that no two choose the same.
    """

    def __init__(self, stored: StoredConsumer, now: float, wall: float) -> None:
        self.name = stored.name
        self.uid = stored.uid
        self.config: ConsumerConfig = stored.config
        self.created = stored.created
        self.position = stored.position
        self.pending: dict[str, Pending] = {}
        self.done_ahead: dict[str, int | None] = {}
        self.changed = Wakeup()
        self.taking = asyncio.Lock()
        self.deleted = False
        for delivery in stored.deliveries:
            if not delivery.settled:
                due = now + max(0.0, delivery.due - wall)
                self.pending[delivery.message] = Pending(
                    delivery.message, delivery.seq, delivery.attempt, due, held=True
                )
            elif delivery.seq > stored.position:
                self.done_ahead[delivery.message] = delivery.seq

    # --- tokens --------------------------------------------------------------------------------------

    def token(self, pending: Pending) -> str:
        """Names this hand-over of the message to this consumer; another attempt has another token."""
        return f"{self.uid}{pending.message}{pending.attempt:x}"

    def held(self, token: str) -> Pending:
        """The delivery of ``token``, if it is still to be settled.

        Raises:
            NotFound: it is not a token of this consumer.
            AlreadySettled: it was settled, or has been handed over again.
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
            raise AlreadySettled(
                f"this delivery of message {parts[2]} ran out of time; it is with another worker now"
            )
        if not pending.held:
            raise AlreadySettled(f"this delivery of message {parts[2]} was given back before")
        return pending

    # --- what is due ---------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """How many more messages may be pending."""
        return self.config.max_ack_pending - len(self.pending)

    def due(self, now: float, follow: bool) -> list[Pending]:
        """What may be handed over again now, in seq order, open ones last."""
        ready = [pending for pending in self._redeliverable(follow) if pending.due <= now]
        return sorted(ready, key=lambda pending: (pending.seq is None, pending.seq or 0))

    def next_due(self, follow: bool) -> float | None:
        """When something will be due again."""
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
        if pending.seq is None or pending.seq > self.position:
            self.done_ahead[pending.message] = pending.seq
        self.changed.notify()

    def give_back(self, pending: Pending, due: float) -> None:
        """A delivery may be handed over again from ``due`` on."""
        pending.held = False
        pending.due = due
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
        if self.pending.pop(message_id, None) is not None:
            self.changed.notify()

    def stored(self, pending: Pending, now: float, wall: float) -> StoredDelivery:
        """The delivery as the store keeps it."""
        return StoredDelivery(
            self.uid, pending.message, pending.seq or 0, pending.attempt, wall + pending.due - now
        )
