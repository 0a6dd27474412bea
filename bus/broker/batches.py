"""Many small messages of one topic, published together: checked one by one, made durable by one flush.

Strategy. None of them is ever seen half-way, so they need none of what an upload has: their frames are
checked as a whole, and their rows go to the store in one transaction, in their order. Only where something
else has a say in it, an upload of the same key or a quota that other uploads have taken room in, does each go
the way of a single message; their rows still stand one behind the other in the store's queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from tensorbus.bus.clock import Clock
from tensorbus.bus.messages import MessageInfo, Receipt
from tensorbus.bus.stores.base import Store
from tensorbus.bus.stores.values import Listing, Terms
from tensorbus.bus.topics import check_key
from tensorbus.errors import InvalidRequest, LimitExceeded, TensorbusError
from tensorbus.streaming.whole import check_whole

from .consumers import Consumers
from .message_ids import new_id
from .open_messages import OpenMessages
from .quotas import Quotas
from .settings import BrokerSettings
from .uploads import Upload
from .workers import Workers

MAX_RECORDS = 256
"""Messages in one batch."""
MAX_BYTES = 1 << 20
"""Bytes of one batch, keys and lengths included."""
_AT_A_TIME = 4
"""Messages that are checked before others get their turn on the event loop."""


@dataclass(frozen=True, slots=True)
class Record:
    """One message of a batch: its frames, and its idempotency key if it has one."""

    key: str | None
    body: bytes


Outcome = Receipt | TensorbusError
"""What became of one message of a batch."""


class Batches:
    """Publishes batches; belongs to the event loop."""

    def __init__(
        self,
        store: Store,
        settings: BrokerSettings,
        workers: Workers,
        clock: Clock,
        consumers: Consumers,
        quotas: Quotas,
        open_messages: OpenMessages,
    ) -> None:
        self._store = store
        self._settings = settings
        self._workers = workers
        self._clock = clock
        self._consumers = consumers
        self._quotas = quotas
        self._open = open_messages

    async def publish(
        self, topic: str, records: Sequence[Record], owner: str | None, quota: int | None
    ) -> list[Outcome]:
        """See ``Broker.publish_batch``; the topic has been checked."""
        if not 1 <= len(records) <= MAX_RECORDS:
            raise InvalidRequest(f"a batch has 1 to {MAX_RECORDS} messages, not {len(records)}")
        return await self._workers.finish(self._publish(topic, records, owner, quota))

    async def _publish(
        self, topic: str, records: Sequence[Record], owner: str | None, quota: int | None
    ) -> list[Outcome]:
        size = sum(len(record.body) for record in records)
        self._store.check_room(size)
        with self._open.counted():
            terms = self._quotas.plain_terms(topic, owner, quota)
            if terms is None or any(self._open.is_open(topic, record.key) for record in records):
                return await self._one_by_one(topic, records, owner, quota)
            outcomes = await self._together(topic, records, terms)
            for number, outcome in enumerate(outcomes):
                if isinstance(outcome, Receipt) and outcome.id in self._store.damaged:
                    # What its key stands for is damaged, and can be replaced: that is an upload's business.
                    (outcomes[number],) = await self._one_by_one(topic, [records[number]], owner, quota)
            return outcomes

    async def _together(self, topic: str, records: Sequence[Record], terms: Terms) -> list[Outcome]:
        wall = self._clock.wall()
        now = datetime.fromtimestamp(wall, UTC)
        outcomes: dict[int, Outcome] = {}
        listings: list[Listing] = []
        for number, record in enumerate(records):
            if number and not number % _AT_A_TIME:
                await asyncio.sleep(0)
            try:
                listings.append(Listing(self._checked(topic, record, wall, now), record.body, terms))
            except TensorbusError as problem:
                outcomes[number] = problem
                self._open.aborted += 1
        if listings:
            places = [number for number in range(len(records)) if number not in outcomes]
            outcomes |= zip(places, await self._list(topic, listings), strict=True)
        return [outcomes[number] for number in range(len(records))]

    async def _list(self, topic: str, listings: Sequence[Listing]) -> Sequence[Outcome]:
        """List them, and tell everybody who has to know."""
        keys = [listing.info.key for listing in listings if listing.info.key is not None]
        with self._open.listing(topic, keys):
            # The next step puts the messages into the store's queue; a pull that comes to stand behind them
            # there is handed them by the same flush of the disk, or the next one.
            asyncio.get_running_loop().call_soon(self._consumers.arrived, topic)
            found = await self._store.seal_all(listings)
        for listing, outcome in zip(listings, found, strict=True):
            if isinstance(outcome, Receipt):
                self._open.listed(listing.info, duplicate=outcome.duplicate)
        stored = [each.seq for each in found if isinstance(each, Receipt) and not each.duplicate]
        if stored:
            self._consumers.listed(topic, stored[-1])
        return found

    def _checked(self, topic: str, record: Record, wall: float, now: datetime) -> MessageInfo:
        """What is listed of a record, if it is a message."""
        self._check_record(record)
        envelope, totals = check_whole(record.body)
        size = len(record.body)
        return MessageInfo(
            id=new_id(wall),
            seq=None,
            topic=topic,
            key=record.key,
            state="sealed",
            bytes=size,
            frames=totals.frames,
            headers=envelope.headers,
            container=envelope.container,
            pipeline=envelope.pipeline,
            items=totals.items,
            original_bytes=totals.original_bytes,
            wire_bytes=size,
            digest=totals.digest.hex(),
            created=now,
            sealed=now,
        )

    def _check_record(self, record: Record) -> None:
        if record.key is not None:
            check_key(record.key)
        size, limit = len(record.body), min(self._settings.inline_bytes, self._settings.max_message_bytes)
        if size > limit:
            raise LimitExceeded(
                f"a message of {size} bytes is over the {limit} of one in a batch; publish it by itself"
            )

    # --- where something else has a say --------------------------------------------------------------

    async def _one_by_one(
        self, topic: str, records: Sequence[Record], owner: str | None, quota: int | None
    ) -> list[Outcome]:
        outcomes: list[Outcome | None] = []
        sealing: dict[int, asyncio.Task[Outcome]] = {}
        keys: set[str] = set()
        for number, record in enumerate(records):
            if record.key in keys:
                # The one before is stored then; begun while it is open, this one would take its place.
                await asyncio.wait(sealing.values())
                keys.clear()
            outcome = await self._begun(topic, record, owner, quota)
            if isinstance(outcome, Upload):
                sealing[number] = self._workers.start(_sealed(outcome))
                keys |= set() if record.key is None else {record.key}
                outcomes.append(None)
            else:
                outcomes.append(outcome)
        return [
            await sealing[number] if outcome is None else outcome for number, outcome in enumerate(outcomes)
        ]

    async def _begun(
        self, topic: str, record: Record, owner: str | None, quota: int | None
    ) -> Upload | Outcome:
        """An upload to which all has been written, or what there is to say instead."""
        try:
            self._check_record(record)
            started = await self._open.begin(topic, record.key, len(record.body), owner, quota)
            if isinstance(started, Upload):
                await started.write(record.body)
        except TensorbusError as problem:
            return problem
        return started


async def _sealed(upload: Upload) -> Outcome:
    try:
        return await upload.seal()
    except TensorbusError as problem:
        return problem
