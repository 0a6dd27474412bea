"""Messages that a consumer could not deal with: listed anew on a topic of their own, and brought back.

A dead letter is an ordinary message, with a note of how it died: it is listed, fetched, consumed, kept by
policies and deleted like any other. It shares its frames with the message that it is made of.

No loops. A filter may match the dead letters of its own consumer, and those of consumers that match each
other's. So a consumer is never handed a letter that it could not deal with before, in whatever form: the
note tells of all deaths, and each consumer can add one at most. A message that has died too often to be
told is settled, and stays where it is.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

from tensorbus.bus.dead import MAX_DEATHS, Death
from tensorbus.bus.messages import MessageInfo
from tensorbus.bus.stores.values import Copy
from tensorbus.bus.topics import matches
from tensorbus.errors import Conflict, NotFound, StoreDamaged, TensorbusError

from .consumer import Consumer
from .delivery_host import DeliveryHost
from .pending import Pending

_log = logging.getLogger("tensorbus.broker")

_PURGED = 500
"""Letters removed in one transaction."""


class DeadLetters:
    """Buries what is refused or has used up its attempts; lists, replays and removes the letters."""

    def __init__(self, host: DeliveryHost) -> None:
        self._host = host
        self._store = host.store

    # --- made ----------------------------------------------------------------------------------------

    async def bury(self, consumer: Consumer, pending: Pending, reason: str) -> None:
        """Settle a delivery of a sealed message and list its message as a dead letter, in one transaction.

        To be carried through, whoever is cancelled. Raises StorageFull, StorageError: it is as it was.
        """
        pending.settling = True
        host = self._host
        try:
            info = await self._store.message(pending.message)
            now, wall = host.clock.monotonic(), host.clock.wall()
            row = consumer.stored(pending, now, wall)
            letter = None if info is None else _letter(consumer, pending, info, reason, wall)
            if letter is None:
                listed = None
                await self._store.settle(consumer.uid, consumer.position, [row])
            else:
                listed = await self._store.bury(consumer.uid, consumer.position, row, letter)
        except BaseException:
            pending.settling = False
            raise
        consumer.settled(pending)
        host.settled([pending.message])
        if info is not None and listed is not None:
            host.measures.dead += 1
            self._listed(listed)
            _log.warning(
                "message %s of %s is a dead letter of consumer %s now, as %s on %s: %s",
                *(info.id, info.topic, consumer.name, listed.id, listed.topic, reason),
            )

    async def bury_spent(self, consumer: Consumer) -> None:
        """Bury what has used up its attempts and is due again."""
        spent = consumer.spent(self._host.clock.monotonic())
        if spent:
            await asyncio.gather(*(self._bury_spent(consumer, pending) for pending in spent))

    async def _bury_spent(self, consumer: Consumer, pending: Pending) -> None:
        if pending.message in self._store.damaged:
            consumer.dropped(pending.message)
            return
        try:
            how = "was not settled in time" if pending.held else "was given back"
            await self.bury(consumer, pending, f"attempt {pending.tries} of {pending.tries} {how}")
        except TensorbusError as problem:
            _log.error("message %s cannot be made a dead letter yet: %s", pending.message, problem)
            consumer.set_due(pending, self._host.clock.monotonic() + consumer.config.wait(pending.tries))

    async def sweep(self) -> None:
        """Bury what has used up its attempts though nobody pulls."""
        for consumer in self._host.consumers.values():
            await self._host.workers.finish(self.bury_spent(consumer))

    # --- brought back --------------------------------------------------------------------------------

    async def replay(self, message_id: str, everyone: bool) -> MessageInfo:
        """See ``Broker.replay``."""
        return await self._host.workers.finish(self._replay(message_id, everyone))

    async def _replay(self, message_id: str, everyone: bool) -> MessageInfo:
        if (damage := self._store.damaged.get(message_id)) is not None:
            raise StoreDamaged(f"{damage}; it cannot be replayed")
        letter = await self._store.message(message_id)
        if letter is None:
            raise NotFound(f"there is no message {message_id}")
        if (death := letter.dead) is None:
            raise Conflict(f"message {message_id} is no dead letter; only those can be replayed")
        async with self._host.consumers.unchanging() as consumers:
            others: list[Consumer] = []
            if not everyone:
                concerned = [each for each in consumers if matches(each.config.filter, death.topic)]
                others = [each for each in concerned if each.name != death.consumer]
                if len(others) == len(concerned):
                    raise NotFound(
                        f"consumer {death.consumer!r}, whose dead letter this is, does not take "
                        f"{death.topic} any more; replay it for everyone, or create the consumer"
                    )
            info = await self._store.replay(self._again(letter, death, others))
            if info is None:
                raise NotFound(f"there is no message {message_id}")
            for consumer in others:
                if (info.seq or 0) > consumer.position:
                    consumer.done_ahead[info.id] = info.seq
        self._host.consumers.dropped(message_id)
        self._listed(info)
        return info

    def _again(self, letter: MessageInfo, death: Death, others: list[Consumer]) -> Copy:
        before = death.earlier[-1] if death.earlier else None
        return Copy(
            source=letter.id,
            id=uuid4().hex,
            topic=death.topic,
            key=death.key,
            dead=None if before is None else replace(before, earlier=death.earlier[:-1]),
            sealed=self._host.clock.wall(),
            settled_for=tuple(consumer.uid for consumer in others),
        )

    async def purge(self, pattern: str) -> int:
        """Remove all dead letters on matching topics; how many."""
        count = 0
        while True:
            letters = await self._store.messages(pattern, None, _PURGED, "asc", dead=True)
            removed = await self._host.workers.finish(self._store.remove([each.id for each in letters]))
            for message_id in removed:
                self._host.consumers.dropped(message_id)
            count += len(removed)
            if len(letters) < _PURGED:
                return count

    def _listed(self, info: MessageInfo) -> None:
        self._host.consumers.arrived(info.topic)
        self._host.stored(info.id, info.topic)


def _letter(consumer: Consumer, pending: Pending, info: MessageInfo, reason: str, wall: float) -> Copy | None:
    """None for a message that has died too often already."""
    before = info.dead
    earlier = () if before is None else (*before.earlier, replace(before, earlier=()))
    if len(earlier) >= MAX_DEATHS:
        _log.error("message %s is the dead letter of %d consumers; it stays", info.id, len(earlier))
        return None
    death = Death(
        consumer=consumer.name,
        message=info.id,
        topic=info.topic,
        seq=info.seq or 0,
        key=info.key,
        attempts=pending.tries,
        reason=reason,
        at=datetime.fromtimestamp(wall, UTC),
        earlier=earlier,
    )
    return Copy(info.id, uuid4().hex, consumer.dead_letter, None, death, wall)
