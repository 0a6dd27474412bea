"""All durable consumers: made, described, forgotten, and told of what happens to messages."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

from tensorbus.bus.clock import Clock
from tensorbus.bus.consumers import ConsumerConfig, ConsumerInfo
from tensorbus.bus.stores.base import Store, StoredConsumer, StoredDelivery
from tensorbus.bus.topics import check_consumer_name, matches
from tensorbus.errors import Conflict, LimitExceeded, NotFound

from .consumer import Consumer, new_uid
from .open_message import OpenMessage


class Consumers:
    """The consumers of a broker by name.

    Args:
        store: keeps them.
        limit: how many there may be.
        clock: tells the time.
    """

    def __init__(self, store: Store, limit: int, clock: Clock) -> None:
        self._store = store
        self._limit = limit
        self._clock = clock
        self._consumers: dict[str, Consumer] = {}
        self._changing = asyncio.Lock()

    def load(self, stored: Sequence[StoredConsumer]) -> None:
        """Take up consumers where they were."""
        now, wall = self._clock.monotonic(), self._clock.wall()
        self._consumers = {consumer.name: Consumer(consumer, now, wall) for consumer in stored}

    def __len__(self) -> int:
        return len(self._consumers)

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

    async def ensure(self, name: str, config: ConsumerConfig) -> tuple[ConsumerInfo, bool]:
        """Create a consumer or find the same; see ``Broker.ensure_consumer``."""
        check_consumer_name(name)
        config = ConsumerConfig.from_json(config.to_json())
        async with self._changing:
            if (there := self._consumers.get(name)) is not None:
                _check_same(there, config)
                return await self.info(there), False
            if len(self._consumers) >= self._limit:
                raise LimitExceeded(f"there are {self._limit} consumers, the broker's limit; delete one")
            wall = self._clock.wall()
            created = datetime.fromtimestamp(wall, UTC)
            stored = await self._store.add_consumer(StoredConsumer(name, new_uid(), config, 0, created))
            consumer = Consumer(stored, self._clock.monotonic(), wall)
            self._consumers[name] = consumer
            return await self.info(consumer), True

    async def delete(self, name: str) -> None:
        """Forget a consumer; pulls that wait on it end with NotFound. Raises NotFound."""
        async with self._changing:
            consumer = self.get(name)
            await self._store.delete_consumer(consumer.uid)
            del self._consumers[name]
            consumer.deleted = True
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

    # --- told ----------------------------------------------------------------------------------------

    def followers(self, message: OpenMessage) -> list[StoredDelivery]:
        """Deliveries of a message about to be sealed; they do not change until its outcome is told."""
        now, wall = self._clock.monotonic(), self._clock.wall()
        found: list[StoredDelivery] = []
        for consumer in self._consumers.values():
            if (pending := consumer.pending.get(message.id)) is not None:
                pending.sealing = True
                found.append(consumer.stored(pending, now, wall))
            elif message.id in consumer.done_ahead:
                found.append(StoredDelivery(consumer.uid, message.id, 0, 1, wall, settled=True))
        return found

    def opened(self, message: OpenMessage) -> None:
        """An open message may be followed now."""
        for consumer in self._consumers.values():
            if matches(consumer.config.filter, message.topic):
                consumer.changed.notify()

    def sealed(self, message: OpenMessage, seq: int) -> None:
        """A message is in the log."""
        for consumer in self._consumers.values():
            consumer.sealed(message.id, seq)
        self.opened(message)

    def dropped(self, message_id: str) -> None:
        """A message was deleted or aborted."""
        for consumer in self._consumers.values():
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
