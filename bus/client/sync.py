"""SyncClient: the client for programs without an event loop, such as a plain training loop.

    with SyncClient("http://127.0.0.1:8080") as bus:
        receipt = bus.publish("models.demo", model.state_dict(), codec="nf4")
        for delivery in bus.subscribe("models.>", consumer="site-a"):
            model.load_state_dict(delivery.load())
            delivery.ack()

Everything is done by the async client, in a thread of its own; arguments, results and errors are the same.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from os import PathLike
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from tensorbus.bus.messages import MessageInfo, TopicInfo
from tensorbus.codecs.item import ItemSpec
from tensorbus.errors import ClientClosed
from tensorbus.streaming.headers import HeaderValue

from .addresses import Urls
from .client import Client
from .delivery import Delivery
from .item_sink import DecodedItem
from .message import Message
from .portal import Portal
from .progress import ProgressCallback
from .publishing import Receipt
from .settings import ClientSettings
from .tls import TlsSettings

M = TypeVar("M", bound=Message)


class SyncMessage(Generic[M]):
    """A message at the broker; see `Message`.

    Attributes:
        message: the same for async code.
    """

    def __init__(self, portal: Portal, message: M) -> None:
        self._portal = portal
        self.message = message

    @property
    def info(self) -> MessageInfo:
        """Everything the broker says about it."""
        return self.message.info

    @property
    def id(self) -> str:
        """32 hex digits."""
        return self.message.id

    @property
    def topic(self) -> str:
        """Where it was published."""
        return self.message.topic

    @property
    def headers(self) -> Mapping[str, HeaderValue]:
        """The publisher's headers."""
        return self.message.headers

    @property
    def manifest(self) -> tuple[ItemSpec, ...]:
        """See `Message.manifest`."""
        return self.message.manifest

    def load(self, into: object | None = None, progress: ProgressCallback | None = None) -> object:
        """See `Message.load`."""
        return self._portal.call(lambda: self.message.load(into, progress))

    def save(
        self,
        path: str | PathLike[str],
        *,
        item: str | None = None,
        progress: ProgressCallback | None = None,
    ) -> None:
        """See `Message.save`."""
        self._portal.call(lambda: self.message.save(path, item=item, progress=progress))

    def item(self, name: str, progress: ProgressCallback | None = None) -> DecodedItem:
        """See `Message.item`."""
        return self._portal.call(lambda: self.message.item(name, progress))

    def items(self, progress: ProgressCallback | None = None) -> Generator[DecodedItem]:
        """See `Message.items`."""
        with self._portal.iterating(self.message.items(progress)) as items:
            yield from items


class SyncDelivery(SyncMessage[Delivery]):
    """A message in a consumer's hands; see `Delivery`."""

    @property
    def attempt(self) -> int:
        """How many times the message has been handed over."""
        return self.message.attempt

    def ack(self) -> None:
        """See `Delivery.ack`."""
        self._portal.call(self.message.ack)

    def nak(self, delay: float = 0.0) -> None:
        """See `Delivery.nak`."""
        self._portal.call(lambda: self.message.nak(delay))

    def term(self, reason: str = "") -> None:
        """See `Delivery.term`."""
        self._portal.call(lambda: self.message.term(reason))

    def in_progress(self) -> None:
        """See `Delivery.in_progress`; done by itself while the delivery is held."""
        self._portal.call(self.message.in_progress)


class SyncClient:
    """A broker's client for threads without an event loop; see `Client` for the arguments and the errors.

    It may be used by several threads at once.
    """

    def __init__(
        self,
        url: Urls,
        token: str | None = None,
        settings: ClientSettings | None = None,
        bases: Iterable[object] = (),
        tls: TlsSettings | None = None,
    ) -> None:
        self._client = Client(url, token, settings, bases, tls)
        self.portal = Portal()

    @property
    def client(self) -> Client:
        """The async client, which belongs to the portal's event loop."""
        return self._client

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections and end the thread. May be called twice."""
        try:
            self.portal.call(self._client.aclose)
        except ClientClosed:
            pass  # by another thread, or before
        self.portal.close()

    def add_base(self, base: object) -> None:
        """See `Client.add_base`."""
        self._client.add_base(base)

    def publish(self, topic: str, container: object, **options: Any) -> Receipt:
        """See `Client.publish`, also for ``options``."""
        return self.portal.call(lambda: self._client.publish(topic, container, **options))

    def fetch(self, message_id: str) -> SyncMessage[Message]:
        """See `Client.fetch`."""
        return SyncMessage(self.portal, self.portal.call(lambda: self._client.fetch(message_id)))

    def message(self, message_id: str) -> MessageInfo:
        """See `Client.message`."""
        return self.portal.call(lambda: self._client.message(message_id))

    def messages(
        self,
        filter: str = ">",  # noqa: A002 - as in Client.messages
        *,
        after: int = 0,
        newest_first: bool = False,
    ) -> Generator[MessageInfo]:
        """See `Client.messages`."""
        found = self._client.messages(filter, after=after, newest_first=newest_first)
        with self.portal.iterating(found) as infos:
            yield from infos

    def topics(self) -> list[TopicInfo]:
        """See `Client.topics`."""
        return list(self.portal.call(self._client.topics))

    def delete(self, message_id: str) -> None:
        """See `Client.delete`."""
        self.portal.call(lambda: self._client.delete(message_id))

    def subscribe(
        self,
        filter: str,  # noqa: A002 - as in Client.subscribe
        consumer: str | None = None,
        *,
        timeout: float | None = None,
        **options: Any,
    ) -> Generator[SyncDelivery]:
        """Deliveries, one at a time; see `Client.subscribe`, also for ``options``.

        Args:
            timeout: seconds without a delivery after which the loop ends; None waits for ever.
        """
        subscription = self._client.subscribe(filter, consumer, **options)
        self.portal.call(subscription.__aenter__)
        try:
            while True:
                delivery = self.portal.call(lambda: subscription.receive(timeout=timeout))
                if delivery is None:
                    return
                yield SyncDelivery(self.portal, delivery)
        finally:
            self.portal.finish(lambda: subscription.__aexit__(None, None, None))
