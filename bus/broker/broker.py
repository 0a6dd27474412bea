"""The broker: topics, messages, durable consumers and their deliveries. Knows no HTTP, opens no payload.

In short::

    async with Broker(FileStore(path)) as broker:
        upload = await broker.begin("fl.sft.updates", key="round-1/site-a")
        if isinstance(upload, Upload):
            async with upload:                 # leaving it unsealed aborts it
                async for chunk in body:
                    await upload.write(chunk)
                receipt = await upload.seal()
        else:
            receipt = upload                   # stored before under this key; receipt.duplicate is True
"""

from __future__ import annotations

from typing import Literal, Self

from tensorbus.bus.clock import Clock, SystemClock
from tensorbus.bus.consumers import ConsumerConfig, ConsumerInfo, DeliveryInfo
from tensorbus.bus.messages import BrokerStats, MessageInfo, MessagePage, Receipt, State, TopicInfo
from tensorbus.bus.stores.base import Store
from tensorbus.bus.topics import check_filter, check_key, check_message_id, check_topic, matches
from tensorbus.errors import (
    InvalidRequest,
    MessageAborted,
    NotFound,
    StoreDamaged,
)

from . import frame_index
from .consumers import Consumers
from .deliveries import Deliveries
from .open_message import OpenMessage, Phase
from .open_messages import OpenMessages
from .readers import Reader
from .settings import BrokerSettings
from .uploads import Upload
from .workers import Workers

_LARGEST_PAGE = 1000


class Broker:
    """Every method belongs to the event loop it was started on; blocking work goes to worker threads."""

    def __init__(
        self,
        store: Store,
        settings: BrokerSettings | None = None,
        clock: Clock | None = None,
    ) -> None:
        settings = settings or BrokerSettings()
        clock = clock or SystemClock()
        self._store = store
        self._chunk_bytes = settings.chunk_bytes
        self._workers = Workers(settings.io_threads)
        self._consumers = Consumers(store, settings.max_consumers, clock)
        self._open = OpenMessages(store, settings, self._workers, clock, self._consumers)
        self._deliveries = Deliveries(store, self._consumers, self._open.messages, self._workers, clock)
        self._running = False

    async def start(self) -> None:
        """Open the store and take up consumers where they were.

        Raises:
            StoreInUse, StoreVersion, StorageError: the data directory cannot be used.
        """
        self._consumers.load(await self._store.start())
        self._running = True

    async def close(self) -> None:
        """Abort what is open, end every reader and pull, and close the store. Idempotent."""
        if not self._running:
            return
        self._running = False
        self._deliveries.close()
        await self._open.close()
        await self._workers.close()
        await self._store.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- messages ------------------------------------------------------------------------------------

    async def begin(self, topic: str, key: str | None = None, size: int | None = None) -> Upload | Receipt:
        """Begin a message; ``size`` is the body's length in bytes if it is known.

        Returns the first receipt, marked duplicate, if ``key`` was stored in this topic before. An upload
        with the same key that is still open is aborted.

        Raises:
            InvalidName: the topic or the key.
            LimitExceeded: ``size`` is over the limit.
            BrokerBusy: too many uploads are open.
            StorageFull: there is no room for ``size`` more bytes.
        """
        check_topic(topic)
        if key is not None:
            check_key(key)
        return await self._open.begin(topic, key, size)

    async def receipt(self, topic: str, key: str) -> Receipt:
        """The first receipt of a key, marked duplicate, also if its message has been deleted since.

        Waits for the end of an upload of this key: whoever lost its connection, or crashed, so learns for
        good whether its message was stored.

        Raises:
            InvalidName: the topic or the key.
            NotFound: the topic never stored it.
        """
        receipt = await self._open.receipt(check_topic(topic), check_key(key))
        if receipt is None:
            raise NotFound(f"topic {topic} has never stored a message under this key")
        return receipt

    async def message(self, message_id: str) -> MessageInfo:
        """One message, open or sealed. Raises NotFound, StoreDamaged, InvalidName."""
        check_message_id(message_id)
        if (message := self._open.messages.get(message_id)) is not None:
            return message.info
        if (damage := self._store.damaged.get(message_id)) is not None:
            raise StoreDamaged(f"{damage}; it cannot be delivered")
        info = await self._store.message(message_id)
        if info is None:
            raise NotFound(f"there is no message {message_id}")
        return info

    async def messages(
        self,
        topic: str = ">",
        state: State = "sealed",
        after: int | None = None,
        limit: int = 100,
        order: Literal["asc", "desc"] = "asc",
    ) -> MessagePage:
        """A page of messages whose topic matches the filter, by seq (open ones: by begin, all in one page).

        ``after`` is the seq that the listing continues behind, in its order. Damaged messages are left out.
        Raises InvalidName, InvalidRequest (limit not 1 to 1000).
        """
        check_filter(topic)
        if not 1 <= limit <= _LARGEST_PAGE:
            raise InvalidRequest(f"a page has 1 to {_LARGEST_PAGE} messages, not {limit}")
        if state == "open":
            found = [
                message.info for message in self._open.messages.values() if matches(topic, message.topic)
            ]
            return MessagePage(tuple(found if order == "asc" else found[::-1]), None)
        found = await self._store.messages(topic, after, limit + 1, order)
        page = found[:limit]
        whole = tuple(info for info in page if info.id not in self._store.damaged)
        return MessagePage(whole, page[-1].seq if len(found) > limit else None)

    async def manifest(self, message_id: str) -> list[dict[str, object]]:
        """The manifest's entries as on the wire, read back from the frames; of an open message, those so far.

        Raises NotFound, StoreDamaged.
        """
        async with await self.open_reader(message_id) as reader:
            info = await self.message(message_id)
            return await self._workers.run(frame_index.manifest, reader.fd, info.bytes, info.items)

    async def item_range(self, message_id: str, name: str) -> tuple[int, int]:
        """First byte and end of the item's slice frames within the body; of a view, those of what it views.

        Raises:
            NotFound: no such message or item. An item without elements has an empty range.
            Conflict: the message is open and the item has not arrived completely.
        """
        async with await self.open_reader(message_id) as reader:
            info = await self.message(message_id)
            sealed = info.state == "sealed"
            return await self._workers.run(
                frame_index.item_range, reader.fd, info.bytes, info.items, name, sealed
            )

    async def open_reader(self, message_id: str, start: int = 0, end: int | None = None) -> Reader:
        """A reader over body bytes ``start`` to ``end`` (exclusive; None is the end of the message).

        It follows an open message frame by frame. Deleting the message does not disturb it.
        Raises NotFound, StoreDamaged, InvalidRequest (a range outside a sealed message).
        """
        info = await self.message(message_id)
        message = self._open.messages.get(message_id)
        size = info.bytes if message is None else None
        last = start if end is None else end
        if not 0 <= start <= last or (size is not None and last > size):
            raise InvalidRequest(f"there is no range {start} to {end} in a message of {size} bytes")
        if message is not None:
            await self._first_frame(message)
        try:
            fd = await self._workers.run(self._store.open_frames, message_id, size)
        except StoreDamaged:
            await self._explain_missing(message_id, message)
            raise
        return Reader(self._workers, message or info, fd, start, end, self._chunk_bytes)

    async def _first_frame(self, message: OpenMessage) -> None:
        """Wait until an open message has a file."""
        while not message.visible:
            if message.phase is Phase.ABORTED:
                raise MessageAborted(message.reason)
            await message.moved.wait(message.moved.version)

    async def _explain_missing(self, message_id: str, message: OpenMessage | None) -> None:
        """The file of a message may be gone because the message is, since a moment ago."""
        if message is not None and message.phase is Phase.ABORTED:
            raise MessageAborted(message.reason)
        await self.message(message_id)

    async def delete(self, message_id: str) -> None:
        """Remove a message and give its space back; an open one is aborted. Raises NotFound."""
        check_message_id(message_id)
        if (upload := self._open.get(message_id)) is not None:
            if upload.message.phase is Phase.OPEN:
                await upload.abort("it was deleted")
                return
            await upload.message.end()
        if not await self._store.delete(message_id):
            raise NotFound(f"there is no message {message_id}")
        self._consumers.dropped(message_id)

    async def topics(self) -> list[TopicInfo]:
        """Topics that hold sealed messages, by name."""
        return await self._store.topics()

    async def stats(self) -> BrokerStats:
        """Figures for monitoring."""
        messages, stored = await self._store.totals()
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
        )

    # --- consumers -----------------------------------------------------------------------------------

    async def ensure_consumer(self, name: str, config: ConsumerConfig) -> tuple[ConsumerInfo, bool]:
        """Create a durable consumer, or find it there with the same configuration; the bool is "created".

        Raises InvalidName, LimitExceeded (too many), Conflict (it is there with another configuration).
        """
        return await self._consumers.ensure(name, config)

    async def consumer(self, name: str) -> ConsumerInfo:
        """One consumer. Raises NotFound."""
        return await self._consumers.info(self._consumers.get(name))

    async def consumers(self) -> list[ConsumerInfo]:
        """All consumers, by name."""
        return await self._consumers.all()

    async def delete_consumer(self, name: str) -> None:
        """Forget a consumer and its deliveries. Raises NotFound."""
        await self._consumers.delete(name)

    async def pull(
        self, name: str, limit: int = 1, wait: float = 0.0, follow: bool = False
    ) -> list[DeliveryInfo]:
        """Hand over the next deliveries, 1 to ``limit``, waiting up to ``wait`` seconds for the first.

        What is due again (nak, ack_wait) comes first, then new messages in seq order, then, with ``follow``,
        open ones. Empty if nothing came. Raises NotFound; also when the consumer is deleted meanwhile.
        """
        return await self._deliveries.pull(name, limit, wait, follow)

    async def ack(self, name: str, token: str) -> None:
        """Settle a delivery for good; durable when this returns.

        Raises:
            NotFound: no such consumer, or the token is not one of its.
            AlreadySettled: settled before, or handed to another worker.
            Conflict: the message is still open.
        """
        await self._deliveries.ack(name, token)

    async def nak(self, name: str, token: str, delay: float = 0.0) -> None:
        """Give a delivery back, to be handed over again after ``delay`` seconds. Raises as ``ack``."""
        await self._deliveries.nak(name, token, delay)

    async def term(self, name: str, token: str) -> None:
        """Refuse a delivery for good. Raises as ``ack``, but an open message may be refused."""
        await self._deliveries.term(name, token)

    async def in_progress(self, name: str, token: str) -> None:
        """Start ``ack_wait`` anew for a delivery. Raises NotFound, AlreadySettled."""
        await self._deliveries.in_progress(name, token)
