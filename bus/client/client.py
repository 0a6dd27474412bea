"""Client: publish, subscribe, fetch. The library's face."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self, cast

from tensorbus.bus import tracing
from tensorbus.bus.consumers import ConsumerConfig, Start
from tensorbus.bus.fields import Fields
from tensorbus.bus.messages import HeaderValue, MessageInfo, MessagePage, TopicInfo
from tensorbus.bus.messages import Receipt as StoredReceipt
from tensorbus.bus.topics import check_filter, check_key, check_message_id, check_topic
from tensorbus.codecs.context import NO_CONTEXT, CodecContext
from tensorbus.codecs.item import Item
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.codecs.residuals import Residuals
from tensorbus.errors import InvalidRequest, NotFound
from tensorbus.streaming.headers import check_headers
from tensorbus.streaming.sources import ItemSource, Source, open_source

from .addresses import Urls
from .administration import PAGE, Administration
from .bases import Bases
from .connection import Connection, segment
from .describing import describe
from .feedback import Feedback
from .handing import at_hand
from .lanes import Lanes
from .message import Message
from .outgoing import Outgoing
from .progress import ProgressCallback, ProgressReporter
from .publishing import Publication, Receipt
from .settings import ClientSettings
from .subscription import Subscription
from .tls import TlsSettings

EPHEMERAL_THRESHOLD = 300.0
"""Seconds after which the consumer of a client that is gone is deleted."""


class Client(Administration):
    """A broker's client, for one event loop::

        async with Client("http://127.0.0.1:8080") as bus:
            receipt = await bus.publish("models.demo", model.state_dict(), codec="nf4")

    Every call survives cut connections and a broker that restarts: it tries again until it has made no
    progress for ``settings.retry_for`` seconds. There is no time-out for a transfer that goes on.

    Args:
        url: of the broker, ``http://host:port`` or ``https://…``. Several are brokers of one store, in one
            string with commas between them or in a sequence: when one is away, calls go on at the next, those
            that are under way too, and stay there.
        token: sent as a bearer token, to no other host than these.
        bases: what messages may be encoded against: paths of safetensors files, containers, which must not
            be changed from then on, or Base objects. They are opened when one is first needed.

        tls: for an ``https`` URL, whom to trust and what to show; None trusts the system's authorities.

    Raises:
        InvalidRequest: ``url`` is no such URL; of several, one is no URL or is there twice, or some are http
            and some https; or ``token`` cannot be one.
        InvalidCertificate: the files of ``tls`` cannot be used.

    Every call raises Unauthorized when the broker does not know the token (any more), Forbidden when the
    token lacks the right, and UntrustedPeer when a certificate does not convince: at once, without a retry.
    """

    def __init__(
        self,
        url: Urls,
        token: str | None = None,
        settings: ClientSettings | None = None,
        bases: Iterable[object] = (),
        tls: TlsSettings | None = None,
    ) -> None:
        super().__init__(Connection(url, token, settings or ClientSettings(), tls))
        self._bases = Bases(self._connection, bases)
        self._feedback = Feedback()
        self._lanes = Lanes(self._connection)

    async def __aenter__(self) -> Self:
        self._connection.check_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections. Calls that are still running, and later ones, raise ClientClosed."""
        await self._connection.aclose()

    @property
    def url(self) -> str:
        """Where the broker is; of several, the one that is asked now."""
        return self._connection.url

    @property
    def urls(self) -> tuple[str, ...]:
        """Where all of them are, in order."""
        return self._connection.addresses.all

    @property
    def bases(self) -> tuple[object, ...]:
        """What messages may be encoded against, as it was given."""
        return self._bases.given

    def add_base(self, base: object) -> None:
        """One more container that messages may be encoded against; see the class."""
        self._bases.add(base)

    # --- publish -----------------------------------------------------------------------------------

    async def publish(
        self,
        topic: str,
        container: object,
        codec: Pipeline | str | Mapping[str, object] | None = None,
        keep: Iterable[str] = (),
        headers: Mapping[str, HeaderValue] | None = None,
        key: str | None = None,
        progress: ProgressCallback | None = None,
        *,
        base: object | None = None,
        residuals: Residuals | None = None,
    ) -> Receipt:
        """Publish a container; returns when every frame has been verified and is on stable storage.

        It is encoded frame by frame while it is sent, so that memory stays constant, and must not be
        changed meanwhile. If the connection breaks, all of it is sent again under the same key.

        Args:
            topic: dot-separated tokens of letters, digits, ``_`` and ``-``.
            container: a state_dict or Module of torch, a dict of numpy arrays, the path of a ``.safetensors``
                file, bytes, a sequence of Items (which arrive as numpy arrays), or a Source.
            codec: how numbers are encoded on the wire: None (exactly), ``"nf4"``, ``"nf4:blocksize=128"``,
                the JSON form of a pipeline, or a Pipeline.
            keep: patterns of item names that are sent exactly, such as ``"*norm*"``.
            headers: up to 64 names to text, number, bool or None; 16 KiB in all. Within a span of
                OpenTelemetry, ``traceparent`` and ``tracestate`` are added, see `Message.trace_context`.
            key: idempotency key, 1 to 255 visible ASCII characters. A message whose key the topic holds
                already is not sent; the receipt is then the stored one's, marked ``duplicate``.
            progress: told of the progress after each megabyte or so.
            base: what the stages ``delta`` and ``same`` compare with: a path, a container or a Base as in
                `Client`; None is the client's only base. The receiver needs the same.
            residuals: where the stage ``feedback`` keeps what quantising left out; None is in memory, one
                for each topic. They advance when the message is acknowledged, and only then.

        Raises:
            InvalidName, InvalidRequest, InvalidSpecification, LimitExceeded: an argument is malformed.
            MissingBase: the codec needs a base, and there is none, or more than one to choose from.
            UnsupportedContainer, UnsupportedDtype, UnknownCodec: it cannot be encoded.
            NonFiniteValues: a tensor to be quantised holds NaN or Inf; the error names it.
            MessageAborted: somebody deleted the message while it was open.
            MessageReplaced: other uploads of the same key took its place, again and again. One that does and
                is completed is what the receipt is of, marked ``duplicate``.
            StorageFull: the broker has no room.
            BrokerUnavailable: the broker went away and did not come back in time.
        """
        self._connection.check_open()
        check_topic(topic)
        if key is not None:
            check_key(key)
        checked = check_headers(tracing.injected(headers or {}))
        pipeline = Pipeline.parse(codec, keep)
        here = at_hand(container)
        source = _source(container) if here else await self._connection.in_thread(lambda: _source(container))
        outgoing = Outgoing(
            topic,
            source,
            pipeline,
            checked,
            key or f"publish-{secrets.token_hex(16)}",
            key_made=key is None,
            at_hand=here,
        )
        try:
            async with self._feedback.turn(topic, pipeline, residuals) as kept:
                if kept is not None:
                    await self._resolve(topic, kept)
                reporter = ProgressReporter(progress)
                context = await self._writing(pipeline, base)
                publication = Publication(self._connection, self._lanes, outgoing, context, kept, reporter)
                return await publication.run()
        finally:
            if source is not container:
                source.close()

    async def _writing(self, pipeline: Pipeline, base: object | None) -> CodecContext:
        if not any(stage.against_base for stage in pipeline.stages):
            return NO_CONTEXT
        return await self._bases.writing(base)

    async def _resolve(self, topic: str, residuals: Residuals) -> None:
        """Find out what became of a message whose answer never came, in this process or the one before."""
        key = await self._connection.in_thread(residuals.unresolved)
        if key is not None and await self.receipt(topic, key) is not None:
            await self._connection.in_thread(residuals.commit)

    async def receipt(self, topic: str, key: str) -> StoredReceipt | None:
        """What the broker said when it stored ``key`` in ``topic``, also of a message deleted since.

        None if it never did. An upload of the key that is under way is waited for.
        """
        path = f"/v1/topics/{segment(check_topic(topic))}/receipt"
        try:
            answer = await self._connection.call("GET", path, params={"key": check_key(key)})
        except NotFound:
            return None
        return StoredReceipt.from_json(answer)

    # --- subscribe and fetch -----------------------------------------------------------------------

    def subscribe(
        self,
        filter: str,  # noqa: A002 - the word of the HTTP API and of the wire
        consumer: str | None = None,
        follow: bool = False,
        start: Start = "all",
        ack_wait: float = 30.0,
        max_in_flight: int = 64,
        *,
        prefetch: int = 1,
        backoff: Sequence[float] = (),
        max_deliver: int | None = None,
        dead_letter: str | None = None,
        inactive_threshold: float | None = None,
    ) -> Subscription:
        """Deliveries of the messages whose topics match ``filter``; to be used with ``async with``.

        All but ``follow`` and ``prefetch`` are settings of the consumer; for one that exists already, they
        change nothing and have to be the same. Times are seconds.

        Args:
            filter: a topic in which ``*`` stands for one token and a last ``>`` for one or more.
            consumer: name of a durable consumer, which remembers what it has dealt with and may have many
                workers; None for one that is deleted when the block is left, or when its client is gone for
                five minutes.
            follow: also hand over messages that are still being published.
            start: ``"all"`` from the first stored message on, ``"new"`` only those sealed from now on, an int
                from the message with this seq on, a datetime from the first message sealed then or later.
            ack_wait: after which a delivery that nobody holds any more is handed over again.
            max_in_flight: deliveries that all workers of the consumer may hold at a time.
            prefetch: 1 asks for each delivery when it is wanted. More keeps a stream open on which so many
                come by themselves, for many small messages; those that wait here go to no other worker.
            backoff: in place of ``ack_wait``, one for each attempt; the last holds for all further ones.
            max_deliver: attempts after which a message becomes a dead letter; None is as many as it takes.
            dead_letter: the topic of dead letters; None is ``dead.`` and the consumer's name.
            inactive_threshold: after which a consumer that nobody uses is deleted; None is never, but for
                one without a name.

        Raises:
            InvalidName: the filter, the dead-letter topic or the consumer's name is malformed.
            InvalidRequest: a setting is out of its bounds.
            Conflict: (on entering) the consumer exists with other settings.
        """
        self._connection.check_open()
        if consumer is None and inactive_threshold is None:
            inactive_threshold = EPHEMERAL_THRESHOLD
        config = ConsumerConfig(
            filter=check_filter(filter),
            start=start,
            ack_wait=ack_wait,
            max_ack_pending=max_in_flight,
            backoff=tuple(backoff),
            max_deliver=max_deliver,
            dead_letter=dead_letter,
            inactive_threshold=inactive_threshold,
        )
        config = ConsumerConfig.from_json(config.to_json())
        if prefetch < 1:
            raise InvalidRequest(f"prefetch must be 1 or more, not {prefetch}")
        return Subscription(self._connection, self._bases, config, consumer, follow, prefetch)

    async def fetch(self, message_id: str) -> Message:
        """The message of this id, to be read; its values are not fetched yet.

        Raises:
            InvalidName: the id is not 32 hex digits.
            NotFound: there is no such message.
        """
        info, entries = await describe(self._connection, check_message_id(message_id))
        return Message(self._connection, self._bases, info, entries)

    # --- what is there -----------------------------------------------------------------------------

    async def message(self, message_id: str) -> MessageInfo:
        """What the broker says of a message. Raises as `fetch`."""
        path = f"/v1/messages/{segment(check_message_id(message_id))}"
        return MessageInfo.from_json(await self._connection.call("GET", path))

    async def messages(
        self,
        filter: str = ">",  # noqa: A002 - as in subscribe
        *,
        after: int = 0,
        newest_first: bool = False,
    ) -> AsyncGenerator[MessageInfo]:
        """The sealed messages whose topics match ``filter``, by position in the broker's log.

        Args:
            after: only those behind this position (before it, with ``newest_first``); 0 for all.
        """
        check_filter(filter)
        position = after
        while True:
            params: dict[str, str | int] = {
                "topic": filter,
                "state": "sealed",
                "limit": PAGE,
                "order": "desc" if newest_first else "asc",
            }
            if position:
                params["after"] = position
            page = MessagePage.from_json(await self._connection.call("GET", "/v1/messages", params=params))
            for info in page.messages:
                yield info
            if page.next is None:
                return
            position = page.next

    async def open_messages(self, filter: str = ">") -> list[MessageInfo]:  # noqa: A002 - as in subscribe
        """The messages that are being published at the moment, in the order in which they were begun.

        What is said of one is what has come so far: headers are there as soon as its first frame is. It can
        be read all the same, see `Message`.
        """
        params: dict[str, str | int] = {"topic": check_filter(filter), "state": "open"}
        page = MessagePage.from_json(await self._connection.call("GET", "/v1/messages", params=params))
        return list(page.messages)

    async def delete(self, message_id: str) -> None:
        """Remove a message and give its space back; an open one is aborted. Raises as `fetch`."""
        await self._connection.call("DELETE", f"/v1/messages/{segment(check_message_id(message_id))}")

    async def topics(self) -> list[TopicInfo]:
        """The topics that hold messages."""
        answer = await self._connection.call("GET", "/v1/topics")
        return [TopicInfo.from_json(entry) for entry in Fields(answer, "topics").array("topics")]


def _source(container: object) -> Source:
    given: object = container
    if isinstance(container, (list, tuple)) and all(
        isinstance(entry, Item) for entry in cast(Sequence[object], given)
    ):
        return ItemSource("numpy", cast(Sequence[Item], given))
    return open_source(given)
