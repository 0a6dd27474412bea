"""All durable consumers: made, described, forgotten, and told of what happens to messages."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime

from tensorbus.bus.activity import Trouble
from tensorbus.bus.clock import Clock
from tensorbus.bus.consumers import ConsumerConfig, ConsumerInfo
from tensorbus.bus.stores.base import Store
from tensorbus.bus.stores.values import StoredConsumer, StoredDelivery
from tensorbus.bus.topics import check_consumer_name, matches
from tensorbus.errors import Conflict, InvalidRequest, LimitExceeded, NotFound, TooManyRequests

from .consumer import Consumer, new_uid
from .open_message import OpenMessage

_log = logging.getLogger("tensorbus.broker")

_REMEMBERED = 10_000
"""Topics whose consumers are remembered."""


class Consumers:
    """The consumers of a broker by name.

    Args:
        store: keeps them.
        limit: how many there may be.
        owned_limit: how many of them one owner may have made.
        clock: tells the time.
    """

    def __init__(self, store: Store, limit: int, owned_limit: int, clock: Clock) -> None:
        self._store = store
        self._limit = limit
        self._owned_limit = owned_limit
        self._clock = clock
        self._consumers: dict[str, Consumer] = {}
        self._by_topic: dict[str, list[Consumer]] = {}
        # Open messages that were handed over: asked at each seal, where there may be thousands of others.
        self._followers: dict[str, list[Consumer]] = {}
        self._changing = asyncio.Lock()

    def load(self, stored: Sequence[StoredConsumer]) -> None:
        """Take up consumers where they were."""
        now, wall = self._clock.monotonic(), self._clock.wall()
        self._consumers = {consumer.name: Consumer(consumer, now, wall) for consumer in stored}
        self._by_topic.clear()

    def __len__(self) -> int:
        return len(self._consumers)

    def values(self) -> list[Consumer]:
        """All of them."""
        return list(self._consumers.values())

    @property
    def ack_pending(self) -> int:
        """Deliveries in flight over all consumers."""
        return sum(len(consumer.pending) for consumer in self._consumers.values())

    def get(self, name: str) -> Consumer:
        """One consumer. Raises NotFound."""
        consumer = self._consumers.get(name)
        if consumer is None:
            raise NotFound(f"there is no consumer {name[:64]!r}; create it first")
        return consumer

    # --- made and forgotten --------------------------------------------------------------------------

    async def ensure(
        self,
        name: str,
        config: ConsumerConfig,
        check: Callable[[str, ConsumerConfig], None],
        owner: str | None = None,
    ) -> tuple[ConsumerInfo, bool]:
        """Create a consumer or find the same; see ``Broker.ensure_consumer``.

        ``check`` raises if there may be no such consumer beside those that are there.
        """
        check_consumer_name(name)
        config = ConsumerConfig.from_json(config.to_json())
        async with self._changing:
            if (there := self._consumers.get(name)) is not None:
                _check_same(there, config)
                return await self.info(there), False
            if len(self._consumers) >= self._limit:
                raise LimitExceeded(f"there are {self._limit} consumers, the broker's limit; delete one")
            self._check_owned(owner)
            check(name, config)
            wall = self._clock.wall()
            if isinstance(config.start, datetime) and config.start.timestamp() > wall:
                raise InvalidRequest(
                    f'consumer {name!r}: start lies in the future; "new" starts with what comes from now on'
                )
            created = datetime.fromtimestamp(wall, UTC)
            new = StoredConsumer(name, new_uid(), config, 0, created, owner=owner)
            stored = await self._store.add_consumer(new)
            consumer = Consumer(stored, self._clock.monotonic(), wall)
            self._consumers[name] = consumer
            self._by_topic.clear()
            return await self.info(consumer), True

    def _check_owned(self, owner: str | None) -> None:
        if owner is None:
            return
        made = sum(consumer.owner == owner for consumer in self._consumers.values())
        if made >= self._owned_limit:
            raise TooManyRequests(
                f"token {owner} has {made} consumers, and may have {self._owned_limit}; delete some first"
            )

    async def delete(self, name: str) -> None:
        """Forget a consumer; pulls that wait on it end with NotFound. Raises NotFound."""
        async with self._changing:
            await self._delete(self.get(name))

    async def _delete(self, consumer: Consumer) -> None:
        await self._store.delete_consumer(consumer.uid)
        del self._consumers[consumer.name]
        self._by_topic.clear()
        consumer.deleted = True
        consumer.changed.notify()

    @asynccontextmanager
    async def unchanging(self) -> AsyncGenerator[list[Consumer]]:
        """All consumers; none is made or deleted within the block."""
        async with self._changing:
            yield self.values()

    async def sweep(self) -> None:
        """Forget consumers that nobody uses any more, and wake the pulls of those that have something due."""
        async with self._changing:
            for consumer in self.values():
                now = self._clock.monotonic()
                if consumer.inactive(now):
                    await self._delete(consumer)
                    _log.info("consumer %s was not used for its threshold and is deleted", consumer.name)
                elif consumer.pulls and consumer.due(now, follow=True):
                    consumer.changed.notify()

    # --- described -----------------------------------------------------------------------------------

    async def info(self, consumer: Consumer) -> ConsumerInfo:
        """What there is to say about a consumer."""
        position = consumer.position
        waiting = await self._store.backlog(consumer.config.filter, position)
        ahead = sum(1 for pending in consumer.pending.values() if (pending.seq or 0) > position)
        done = sum(1 for seq in consumer.done_ahead.values() if (seq or 0) > position)
        return ConsumerInfo(
            name=consumer.name,
            config=consumer.config,
            position=position,
            ack_pending=len(consumer.pending),
            backlog=max(0, waiting - ahead - done),
            created=consumer.created,
        )

    async def all(self) -> list[ConsumerInfo]:
        """Every consumer, by name."""
        return [await self.info(consumer) for _, consumer in sorted(self._consumers.items())]

    async def lasting(self, limit: int) -> list[ConsumerInfo]:
        """The first ``limit`` by name of those that do not delete themselves: figures' labels have bounds."""
        named = sorted(self._consumers.items())
        lasting = [consumer for _, consumer in named if consumer.config.inactive_threshold is None]
        return [await self.info(consumer) for consumer in lasting[:limit]]

    def troubles(self) -> dict[str, Trouble]:
        """What each consumer has difficulties with."""
        now = self._clock.monotonic()
        return {name: consumer.trouble(now) for name, consumer in self._consumers.items()}

    # --- told ----------------------------------------------------------------------------------------

    def followers(self, message: OpenMessage) -> list[StoredDelivery]:
        """Deliveries of a message about to be sealed; they do not change until its outcome is told."""
        now, wall = self._clock.monotonic(), self._clock.wall()
        found: list[StoredDelivery] = []
        # The caller's next step puts the message into the store's queue; a pull that is behind it there gets
        # the message in the same transaction, and so one flush of the disk earlier.
        asyncio.get_running_loop().call_soon(self.arrived, message.topic)
        for consumer in self._followers.get(message.id, ()):
            if (pending := consumer.pending.get(message.id)) is not None:
                pending.sealing = True
                found.append(consumer.stored(pending, now, wall))
            elif message.id in consumer.done_ahead:
                found.append(StoredDelivery(consumer.uid, message.id, 0, 1, wall, settled=True))
        return found

    def followed(self, consumer: Consumer, message_id: str) -> None:
        """An open message was handed over to a consumer for the first time."""
        self._followers.setdefault(message_id, []).append(consumer)

    def settled_before(self, message: OpenMessage, uids: Sequence[str]) -> None:
        """An open message is not for these consumers: they have settled what it replaces."""
        done = set(uids)
        for consumer in self._interested(message.topic):
            if consumer.uid in done:
                consumer.done_ahead[message.id] = None
                self.followed(consumer, message.id)

    def opened(self, message: OpenMessage) -> None:
        """An open message may be followed now."""
        self.arrived(message.topic)

    def arrived(self, topic: str) -> None:
        """There may be something new in a topic, or in the store's queue for it."""
        for consumer in self._interested(topic):
            consumer.announced += 1
            if consumer.pulls:
                consumer.changed.notify()

    def listed(self, topic: str, seq: int) -> None:
        """A message of a topic is in the log; who looked since it was announced has it already."""
        for consumer in self._interested(topic):
            if seq <= consumer.position:
                continue
            consumer.listed = max(consumer.listed, seq)
            if consumer.pulls:
                consumer.changed.notify()

    def _interested(self, topic: str) -> list[Consumer]:
        """Consumers whose filter matches; remembered, since there may be thousands that do not."""
        found = self._by_topic.get(topic)
        if found is None:
            found = [each for each in self._consumers.values() if matches(each.config.filter, topic)]
            if len(self._by_topic) >= _REMEMBERED:
                self._by_topic.clear()
            self._by_topic[topic] = found
        return found

    def sealed(self, message: OpenMessage, seq: int) -> None:
        """A message is in the log."""
        for consumer in self._followers.pop(message.id, ()):
            consumer.sealed(message.id, seq)
        self.listed(message.topic, seq)

    def aborted(self, message_id: str) -> None:
        """An open message was given up."""
        for consumer in self._followers.pop(message_id, ()):
            consumer.dropped(message_id)

    def dropped(self, message_id: str) -> None:
        """A sealed message was deleted."""
        for consumer in self._consumers.values():
            consumer.dropped(message_id)

    def restored(self, waiting: Sequence[StoredDelivery]) -> None:
        """A damaged message is whole again: what was waiting for that is due at once."""
        now, wall = self._clock.monotonic(), self._clock.wall()
        consumers = {consumer.uid: consumer for consumer in self._consumers.values()}
        for delivery in waiting:
            if (consumer := consumers.get(delivery.consumer)) is not None:
                consumer.load(replace(delivery, due=wall), now, wall)
        self.wake_all()

    def all_dropped(self, message_ids: Iterable[str]) -> None:
        """As ``dropped``, of many messages at once."""
        gone = set(message_ids)
        for consumer in self._consumers.values():
            if consumer.pending or consumer.done_ahead:
                for message_id in gone & (consumer.pending.keys() | consumer.done_ahead.keys()):
                    consumer.dropped(message_id)

    def wake_all(self) -> None:
        """The broker closes: pulls shall not wait any more."""
        for consumer in self._consumers.values():
            consumer.changed.notify()


def _check_same(there: Consumer, config: ConsumerConfig) -> None:
    if there.config == config:
        return
    for name, value in there.config.to_json().items():
        wanted = config.to_json()[name]
        if value != wanted:
            raise Conflict(
                f"consumer {there.name!r} exists with {name} {value!r}, not {wanted!r}; "
                "use its configuration, another name, or delete it"
            )
