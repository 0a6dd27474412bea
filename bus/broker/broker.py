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

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from functools import partial
from typing import Literal, ParamSpec, Self, TypeVar

from tensorbus.bus import log_context
from tensorbus.bus.activity import Transfer, Trouble
from tensorbus.bus.clock import Clock, SystemClock
from tensorbus.bus.consumers import ConsumerConfig, ConsumerInfo, DeliveryInfo
from tensorbus.bus.damage import DamagePage, ScrubReport
from tensorbus.bus.measures import Measures
from tensorbus.bus.messages import BrokerStats, MessageInfo, MessagePage, Receipt, State, TopicInfo
from tensorbus.bus.policies import PolicyConfig, PolicyInfo
from tensorbus.bus.stores.base import Store, StoredConsumer
from tensorbus.bus.stores.syncing import Sync
from tensorbus.bus.topics import check_filter, check_key, check_message_id, check_topic, matches
from tensorbus.errors import (
    Conflict,
    InvalidRequest,
    MessageAborted,
    NotFound,
    StoreDamaged,
    TensorbusError,
)

from . import frame_index, kept_frames
from .batches import Batches, Outcome, Record
from .consumers import Consumers
from .damaged import Damaged
from .dead_letters import DeadLetters
from .deliveries import Deliveries
from .delivery_host import DeliveryHost
from .duplicates import Duplicates
from .frame_source import FrameSource
from .open_message import OpenMessage, Phase
from .open_messages import OpenMessages
from .pushing import Push, Sink, Wish
from .quotas import Quotas
from .readers import Reader, ReaderHost
from .retention import Retention, Sees, everything
from .scrub import Scrubber
from .settings import BrokerSettings
from .space import give_back
from .sweeping import Sweeping
from .uploads import Upload
from .workers import Workers

P = ParamSpec("P")
T = TypeVar("T")

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
        self.measures = Measures()
        self._clock = clock
        store.observe_syncs(self.measures.synced)
        self.settings = settings
        self._store = store
        self._sync: Sync = settings.sync
        self._workers = Workers(settings.io_threads)
        self._consumers = Consumers(store, settings.max_consumers, settings.max_owned_consumers, clock)
        self._retention = Retention(store, self._consumers, self._workers, clock, settings.max_policies)
        self._duplicates = Duplicates(store, self._retention, clock, settings.duplicate_window)
        quotas = Quotas(store, self._retention)
        self._open = OpenMessages(
            store, settings, self._workers, clock, self._consumers, quotas, self.measures
        )
        self._batches = Batches(store, settings, self._workers, clock, self._consumers, quotas, self._open)
        self._damaged = Damaged(store, self._consumers, self._workers, clock, self.measures)
        self._reader_host = ReaderHost(self._workers, settings.chunk_bytes, self._damaged.found)
        self._scrubber = Scrubber(store, self._damaged, self._workers, clock)
        host = DeliveryHost(
            store,
            self._consumers,
            self._workers,
            clock,
            self.measures,
            stored=self._retention.stored,
            settled=self._retention.settled,
            damaged=self._damaged.found,
        )
        self._dead_letters = DeadLetters(host)
        self._deliveries = Deliveries(host, self._dead_letters, self._open.messages)
        # What is due once in a while; each part of the broker that has something registers it here.
        self._sweeping = Sweeping(
            settings.sweep_interval,
            [
                self._dead_letters.sweep,
                self._consumers.sweep,
                self._open.sweep,
                self._retention.sweep,
                self._duplicates.prune,
                partial(give_back, store),
            ],
        )
        self._running = False
        self._leading = False

    async def start(self) -> None:
        """Open the store and take up consumers where they were.

        Raises:
            StoreInUse, StoreVersion, StorageError: the data directory cannot be used.
        """
        self._damaged.start()
        consumers = await self._store.start(self._sync)
        if self._store.leading:
            await self._take_up(consumers)
        self._running = True

    @property
    def leading(self) -> bool:
        """Whether it decides. Where brokers share a store one does, and the others only read."""
        return self._leading and self._store.leading

    async def lead(self) -> bool:
        """Decide from now on, in the place of another broker that is gone; False if a third was faster.

        Raises StorageError.
        """
        consumers = await self._store.lead()
        if consumers is None:
            return False
        await self._take_up(consumers)
        return True

    async def _take_up(self, consumers: Sequence[StoredConsumer]) -> None:
        """What an earlier process, or another broker, has left."""
        self._consumers.load(consumers)
        await self._retention.load()
        self._open.load(await self._store.uploads())
        await self._open.take_up()
        self._leading = True
        await self._sweeping.start()

    async def close(self) -> None:
        """Abort what is open, end every reader and pull, and close the store. Idempotent."""
        if not self._running:
            return
        self._running = False
        await self._sweeping.stop()
        await self._scrubber.stop()
        self._deliveries.close()
        await self._open.close()
        await self._retention.close()
        await self._workers.close()
        await self._store.close()

    async def sweep(self) -> None:
        """Do now what is due by the clock: remove what has grown old, forget keys, give space back.

        It is done at the start and every ``BrokerSettings.sweep_interval`` seconds anyway; to do it again
        changes nothing more.
        """
        await self._sweeping.sweep()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- messages ------------------------------------------------------------------------------------

    async def begin(
        self,
        topic: str,
        key: str | None = None,
        size: int | None = None,
        owner: str | None = None,
        quota: int | None = None,
    ) -> Upload | Receipt:
        """Begin a message; ``size`` is the body's length in bytes if it is known.

        ``owner`` is the id of the publisher's token, and ``quota`` the bytes that it may have stored.

        Returns the first receipt, marked duplicate, if ``key`` was stored in this topic before. An upload
        with the same key that is still open is aborted.

        Raises:
            InvalidName: the topic or the key.
            LimitExceeded: ``size`` is over the limit.
            BrokerBusy: too many uploads are open.
            StorageFull: there is no room for ``size`` more bytes.
            QuotaExceeded: the owner's quota or the topic's policy leaves no room.
        """
        check_topic(topic)
        if key is not None:
            check_key(key)
        return self._begun(await self._open.begin(topic, key, size, owner, quota))

    async def publish_batch(
        self,
        topic: str,
        records: Sequence[Record],
        owner: str | None = None,
        quota: int | None = None,
    ) -> list[Outcome]:
        """Publish many small messages at once: what became of each, in their order.

        Each stands for itself, as with ``begin`` and all that follows; those that are stored are so by one
        flush of the disk, with seqs in this order. It is carried through even if the caller is cancelled.

        Raises:
            InvalidName: the topic. InvalidRequest: there are none, or too many.
            BrokerBusy: too many uploads are open.
            StorageFull, StorageError: none of them was stored.
        """
        outcomes = await self._batches.publish(check_topic(topic), records, owner, quota)
        self.measures.duplicates += sum(isinstance(each, Receipt) and each.duplicate for each in outcomes)
        return outcomes

    def uploads_of(self, owner: str) -> int:
        """How many messages the holder of a token is publishing, or has begun and not ended."""
        return sum(message.owner == owner for message in self._open.messages.values())

    async def create_upload(
        self,
        topic: str,
        key: str | None = None,
        length: int | None = None,
        metadata: Mapping[str, str] | None = None,
        owner: str | None = None,
        quota: int | None = None,
    ) -> Upload | Receipt:
        """Make a resumable upload, which outlives its connections and this process, durably.

        Returns the first receipt, marked duplicate, if ``key`` was stored in this topic before. An open
        upload of this key is returned if its owner, length and metadata are the same and the latter says
        what the bytes are made of (``source``); any other one is aborted.

        Args:
            length: bytes of the body, None if they are not known yet.
            owner: the id of the publisher's token.
            quota: bytes that it may have stored.

        Raises:
            InvalidName, LimitExceeded, StorageFull, QuotaExceeded: as ``begin``.
            BrokerBusy: too many uploads are begun and not ended.
        """
        check_topic(topic)
        if key is not None:
            check_key(key)
        return self._begun(await self._open.create(topic, key, length, metadata or {}, owner, quota))

    def _begun(self, started: Upload | Receipt) -> Upload | Receipt:
        """Count it, and have the caller's log lines name it."""
        if isinstance(started, Receipt):
            self.measures.duplicates += 1
        log_context.message_id.set(started.id)
        return started

    def upload(self, message_id: str) -> Upload | None:
        """The resumable upload of this id, None if there is none (any more). Raises InvalidName."""
        found = self._open.get(check_message_id(message_id))
        return None if found is None or found.kept is None else found

    async def upload_heads(self, message_id: str, start: int, end: int) -> tuple[bytes, int]:
        """Preludes and headers of frames of an open upload from the one at ``start`` on, and where they end.

        Some of them, one behind the other; none from ``end`` on, which is no more than its ``boundary``.
        Raises StoreDamaged.
        """
        return await self._workers.run(kept_frames.heads, self._store, message_id, start, end)

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
            raise StoreDamaged(f"message {message_id} is damaged: {damage}; it cannot be delivered")
        info = await self._store.message(message_id)
        if info is None:
            raise NotFound(f"there is no message {message_id}")
        return info

    async def is_sealed(self, message_id: str) -> bool:
        """Whether it is in the log, whole or damaged. Raises InvalidName."""
        check_message_id(message_id)
        return message_id not in self._open.messages and await self._store.message(message_id) is not None

    async def topic_of(self, message_id: str) -> str:
        """The topic of a message, also of a damaged one. Raises NotFound, InvalidName."""
        check_message_id(message_id)
        if (message := self._open.messages.get(message_id)) is not None:
            return message.topic
        info = await self._store.message(message_id)
        if info is None:
            raise NotFound(f"there is no message {message_id}")
        return info.topic

    async def messages(
        self,
        topic: str = ">",
        state: State = "sealed",
        after: int | None = None,
        limit: int = 100,
        order: Literal["asc", "desc"] = "asc",
        dead: bool = False,
    ) -> MessagePage:
        """A page of messages whose topic matches the filter, by seq (open ones: by begin, all in one page).

        ``after`` is the seq that the listing continues behind, in its order. Damaged messages are left out.
        A page may be shorter than ``limit`` and not be the last one: it ends at a mebibyte of headers.
        With ``dead``, only dead letters. Raises InvalidName, InvalidRequest (limit not 1 to 1000).
        """
        check_filter(topic)
        if not 1 <= limit <= _LARGEST_PAGE:
            raise InvalidRequest(f"a page has 1 to {_LARGEST_PAGE} messages, not {limit}")
        if state == "open":
            found = [
                message.info for message in self._open.messages.values() if matches(topic, message.topic)
            ]
            return MessagePage(tuple(found if order == "asc" else found[::-1]), None)
        page, more = await self._store.page(topic, after, limit, order, dead)
        whole = tuple(info for info in page if info.id not in self._store.damaged)
        return MessagePage(whole, page[-1].seq if more else None)

    async def manifest(self, message_id: str) -> list[dict[str, object]]:
        """The manifest's entries as on the wire, read back from the frames; of an open message, those so far.

        Raises NotFound, StoreDamaged.
        """
        return [entry async for part in self.manifest_parts(message_id) for entry in part]

    async def manifest_parts(self, message_id: str) -> AsyncGenerator[list[dict[str, object]]]:
        """As ``manifest``, some entries at a time: no more of it need be held."""
        if self._nothing_yet(message_id):
            return
        async with await self.open_reader(message_id) as reader:
            info = await self.message(message_id)
            place: frame_index.ManifestPlace | None = frame_index.ManifestPlace()
            while place is not None:
                part, place = await self._indexed(
                    info, frame_index.manifest_part, reader.source, info.bytes, info.items, place
                )
                if part:
                    yield part

    async def item_range(self, message_id: str, name: str) -> tuple[int, int]:
        """First byte and end of the item's slice frames within the body; of a view, those of what it views.

        Raises:
            NotFound: no such message or item. An item without elements has an empty range.
            Conflict: the message is open and the item has not arrived completely.
        """
        if self._nothing_yet(message_id):
            raise Conflict(f"message {message_id} is open, and nothing of it has arrived yet")
        async with await self.open_reader(message_id) as reader:
            info = await self.message(message_id)
            sealed = info.state == "sealed"
            return await self._indexed(
                info, frame_index.item_range, reader.source, info.bytes, info.items, name, sealed
            )

    def _nothing_yet(self, message_id: str) -> bool:
        """Whether it is open and has no whole frame: of a resumable upload that may be so for long."""
        message = self._open.messages.get(message_id)
        return message is not None and not message.visible

    async def _indexed(self, info: MessageInfo, find: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What is found in the heads of a message's frames; raises StoreDamaged when they make no sense."""
        try:
            return await self._workers.run(find, *args, **kwargs)
        except StoreDamaged as damage:
            await self._damaged.put_aside(info.id, str(damage))
            raise StoreDamaged(f"message {info.id} is damaged: {damage}") from damage

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
            if (upload := self._open.get(message_id)) is not None:
                await upload.touch()
            await self._first_frame(message)
        try:
            source = FrameSource(await self._workers.run(self._store.open_frames, message_id, size))
        except StoreDamaged as damage:
            await self._explain_missing(message_id, message)
            await self._damaged.put_aside(message_id, str(damage))
            raise
        reader = Reader(self._reader_host, message or info, source, start, end)
        if source.body is not None and message is None and start < last:
            # It is small, and whoever has it in memory need not ask again.
            reader.ahead(start)
        return reader

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

    # --- damage --------------------------------------------------------------------------------------

    async def damaged(self, after: int = 0, limit: int = 100) -> DamagePage:
        """Messages that are not delivered because their frames are damaged, by seq, behind ``after``.

        Raises InvalidRequest (limit not 1 to 1000).
        """
        if not 1 <= limit <= _LARGEST_PAGE:
            raise InvalidRequest(f"a page has 1 to {_LARGEST_PAGE} messages, not {limit}")
        return await self._damaged.page(after, limit)

    def scrub(self, rate: int | None = None) -> ScrubReport:
        """Begin to verify everything that is stored, at ``rate`` bytes per second at the most.

        Raises:
            Conflict: one is under way.
        """
        return self._scrubber.begin(rate)

    @property
    def scrubbed(self) -> ScrubReport:
        """How far the scrub is, or what the last one has found."""
        return self._scrubber.report

    async def scrub_end(self) -> ScrubReport:
        """The report of the scrub that is under way, when it is done."""
        return await self._scrubber.end()

    async def stop_scrub(self) -> ScrubReport:
        """End the scrub that is under way, if there is one; what it has found stays."""
        return await self._scrubber.stop()

    def check_writable(self) -> None:
        """Raise StoreReadOnly if messages can be read, but none be stored."""
        self._store.check_writable()

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
        disk = await self._store.disk()
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
            parked_uploads=self._open.parked,
            disk_free=disk.free,
            disk_size=disk.size,
        )

    @property
    def activity(self) -> tuple[int, ...]:
        """Other numbers than before if messages, deliveries or transfers have moved; costs nearly nothing."""
        return (
            self._open.sealed,
            self._open.aborted,
            self._open.received,
            len(self._open.messages),
            self._deliveries.delivered,
            self._deliveries.acked,
            self.measures.redelivered,
            self.measures.dead,
            len(self._consumers),
            self._consumers.ack_pending,
        )

    def transfers(self) -> list[Transfer]:
        """Messages that are being published, in the order in which they began."""
        return self._open.transfers()

    def troubles(self) -> dict[str, Trouble]:
        """What each consumer, by name, has difficulties with."""
        return self._consumers.troubles()

    async def stored_by(self, owner: str) -> int:
        """Bytes of the messages that the holder of a token has stored."""
        return (await self._store.owner_usage(owner)).bytes

    # --- policies ------------------------------------------------------------------------------------

    async def put_policy(
        self,
        name: str,
        config: PolicyConfig,
        check: Callable[[PolicyConfig], None] | None = None,
        sees: Sees = everything,
    ) -> tuple[PolicyInfo, bool]:
        """Create or change a policy, and enforce it at once; the bool is "created".

        ``check`` gets the one that would be changed, and raises if it may not be. ``sees`` says of a filter
        whether the caller may know what has it: a Conflict names nothing else.

        Raises:
            InvalidName, InvalidRequest: what is wanted makes no sense.
            LimitExceeded: there are too many policies.
            Conflict: another policy has topics in common with it, or it is a work queue and its consumers
                would not be one for each message.
        """
        return await self._retention.put(name, config, check, sees)

    async def policy(self, name: str) -> PolicyInfo:
        """One policy. Raises NotFound."""
        return await self._retention.info(name)

    async def policies(self) -> list[PolicyInfo]:
        """All policies, by name."""
        return await self._retention.all()

    async def delete_policy(self, name: str) -> None:
        """Forget a policy: its topics keep what they hold from now on. Raises NotFound."""
        await self._retention.delete(name)

    # --- consumers -----------------------------------------------------------------------------------

    async def ensure_consumer(
        self, name: str, config: ConsumerConfig, owner: str | None = None, sees: Sees = everything
    ) -> tuple[ConsumerInfo, bool]:
        """Create a durable consumer, or find it there with the same configuration; the bool is "created".

        ``owner`` is the id of its maker's token; ``sees`` as in ``put_policy``.

        Raises:
            InvalidName, InvalidRequest: what is wanted makes no sense.
            LimitExceeded: there are too many. TooManyRequests: the owner has too many.
            Conflict: it is there with another configuration, or a work queue has another already.
        """
        check = partial(self._retention.check_consumer, sees=sees)
        return await self._consumers.ensure(name, config, check, owner)

    async def consumer(self, name: str) -> ConsumerInfo:
        """One consumer. Raises NotFound."""
        return await self._consumers.info(self._consumers.get(name))

    def consumer_filter(self, name: str) -> str:
        """The filter of a consumer. Raises NotFound."""
        return self._consumers.get(name).config.filter

    def consumer_dead_letter(self, name: str) -> str:
        """The topic of a consumer's dead letters. Raises NotFound."""
        return self._consumers.get(name).dead_letter

    def consumer_owner(self, name: str) -> str | None:
        """The id of the token that made a consumer, None if it was made without one. Raises NotFound."""
        return self._consumers.get(name).owner

    async def consumers(self) -> list[ConsumerInfo]:
        """All consumers, by name."""
        return await self._consumers.all()

    async def lasting_consumers(self, limit: int) -> list[ConsumerInfo]:
        """Those that do not delete themselves, by name, at most ``limit``."""
        return await self._consumers.lasting(limit)

    async def delete_consumer(self, name: str) -> None:
        """Forget a consumer and its deliveries. Raises NotFound."""
        await self._consumers.delete(name)

    async def pull(
        self, name: str, limit: int = 1, wait: float = 0.0, follow: bool = False, inline: int = 0
    ) -> list[DeliveryInfo]:
        """Hand over the next deliveries, 1 to ``limit``, waiting up to ``wait`` seconds for the first.

        What is due again (nak, ack_wait) comes first, then new messages in seq order, then, with ``follow``,
        open ones. Empty if nothing came. Frames of bodies up to ``inline`` bytes come along, as far as they
        are kept with their rows and are half a mebibyte together; the rest is to be read.
        Raises NotFound; also when the consumer is deleted meanwhile.
        """
        return await self._deliveries.pull(name, limit, wait, follow, inline)

    def push(self, name: str, wish: Wish, sink: Sink) -> Push:
        """Hand deliveries over as they come, for as long as the stream that this returns is not ended.

        They go to ``sink``, in the order of ``pull``; which ones, and how many, ``wish`` says. What it gets
        has been noted as handed over, as with ``pull``.

        Raises:
            NotFound: no such consumer. InvalidRequest: ``wish`` is out of its bounds.
        """
        return self._deliveries.push(name, wish, sink)

    async def ack(self, name: str, token: str) -> None:
        """Settle a delivery for good; durable when this returns.

        Raises:
            NotFound: no such consumer, or the token is not one of its.
            AlreadySettled: settled before, or handed to another worker.
            Conflict: the message is still open.
        """
        _raise_first(await self._deliveries.ack(name, [token]))

    async def ack_all(self, name: str, tokens: Sequence[str]) -> list[TensorbusError | None]:
        """As ``ack``, of up to 256 deliveries in one transaction; what is wrong with each, if anything.

        Raises NotFound (no such consumer), InvalidRequest (too many), StorageError (none is settled).
        """
        return await self._deliveries.ack(name, tokens)

    async def nak(self, name: str, token: str, delay: float = 0.0, unread: bool = False) -> None:
        """Give a delivery back, to be handed over again after ``delay`` seconds. Raises as ``ack``.

        If its attempts are used up it becomes a dead letter at once. ``unread`` says that nobody looked at
        the message: the attempt does not count then.
        """
        _raise_first(await self._deliveries.nak(name, [token], delay, unread))

    async def nak_all(
        self, name: str, tokens: Sequence[str], delay: float = 0.0, unread: bool = False
    ) -> list[TensorbusError | None]:
        """As ``nak``, of many deliveries; returns and raises as ``ack_all``."""
        return await self._deliveries.nak(name, tokens, delay, unread)

    async def term(self, name: str, token: str, reason: str = "") -> None:
        """Refuse a delivery for good: its message becomes a dead letter, in one transaction with that.

        Raises as ``ack``; but an open message may be refused, and leaves no letter.
        """
        await self._deliveries.term(name, token, reason)

    async def in_progress(self, name: str, token: str) -> None:
        """Start the wait for a delivery's settlement anew. Raises NotFound, AlreadySettled."""
        _raise_first(await self._deliveries.in_progress(name, [token]))

    async def in_progress_all(self, name: str, tokens: Sequence[str]) -> list[TensorbusError | None]:
        """As ``in_progress``, of many deliveries; returns and raises as ``ack_all``."""
        return await self._deliveries.in_progress(name, tokens)

    # --- dead letters --------------------------------------------------------------------------------

    async def dead_letters(self, topic: str = ">", after: int | None = None, limit: int = 100) -> MessagePage:
        """A page of the dead letters whose topic matches the filter, as ``messages``, oldest first."""
        return await self.messages(topic, after=after, limit=limit, dead=True)

    async def replay(self, message_id: str, everyone: bool = False) -> MessageInfo:
        """Make a dead letter a message of its original topic again; the letter goes, in one transaction.

        The message is a new one, with the old one's frames, headers and key. Unless ``everyone`` should have
        it again, only the consumer that could not deal with it gets it.

        Raises:
            NotFound: there is no such message; or that consumer is gone, or takes other topics now.
            Conflict: it is no dead letter.
        """
        return await self._dead_letters.replay(check_message_id(message_id), everyone)

    async def purge_dead_letters(self, topic: str) -> int:
        """Remove all dead letters whose topic matches the filter; how many. Raises InvalidName."""
        return await self._dead_letters.purge(check_filter(topic))


def _raise_first(outcomes: Sequence[TensorbusError | None]) -> None:
    """Raise what is wrong with the only one."""
    if outcomes[0] is not None:
        raise outcomes[0]
