"""The broker: topics, messages, durable consumers and their deliveries. Knows no HTTP, opens no payload.

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

import time
from collections.abc import Callable
from typing import Literal, Self

from .broker_settings import BrokerSettings
from .messages import (
    BrokerStats,
    ConsumerConfig,
    ConsumerInfo,
    DeliveryInfo,
    MessageInfo,
    MessagePage,
    Receipt,
    State,
    TopicInfo,
)
from .readers import Reader
from .stores.base import Store
from .uploads import Upload


class Broker:
    """Every method belongs to the event loop it was started on; blocking work goes to worker threads."""

    def __init__(
        self,
        store: Store,
        settings: BrokerSettings | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None: ...

    async def start(self) -> None:
        """Open the store and take up consumers where they were.

        Raises:
            StoreInUse, StoreVersion, StorageError: the data directory cannot be used.
        """
        raise NotImplementedError

    async def close(self) -> None:
        """Abort what is open, end every reader and pull, and close the store. Idempotent."""
        raise NotImplementedError

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
            LimitExceeded: ``size`` is over the limit, or too many uploads are open.
            StorageFull: there is no room for ``size`` more bytes.
        """
        raise NotImplementedError

    async def message(self, message_id: str) -> MessageInfo:
        """One message, open or sealed. Raises NotFound, StoreDamaged, InvalidName."""
        raise NotImplementedError

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
        raise NotImplementedError

    async def manifest(self, message_id: str) -> list[dict[str, object]]:
        """The manifest's entries as on the wire, read back from the frames; of an open message, those so far.

        Raises NotFound, StoreDamaged.
        """
        raise NotImplementedError

    async def item_range(self, message_id: str, name: str) -> tuple[int, int]:
        """First byte and end of the item's slice frames within the body; of a view, those of the item it views.

        Raises:
            NotFound: no such message or item. An item without elements has an empty range.
            Conflict: the message is open and the item has not arrived completely.
        """
        raise NotImplementedError

    async def open_reader(self, message_id: str, start: int = 0, end: int | None = None) -> Reader:
        """A reader over body bytes ``start`` to ``end`` (exclusive; None is the end of the message).

        It follows an open message frame by frame. Deleting the message does not disturb it.
        Raises NotFound, StoreDamaged, InvalidRequest (a range outside a sealed message).
        """
        raise NotImplementedError

    async def delete(self, message_id: str) -> None:
        """Remove a message and give its space back; an open one is aborted. Raises NotFound."""
        raise NotImplementedError

    async def topics(self) -> list[TopicInfo]:
        """Topics that hold sealed messages, by name."""
        raise NotImplementedError

    async def stats(self) -> BrokerStats:
        """Figures for monitoring."""
        raise NotImplementedError

    # --- consumers -----------------------------------------------------------------------------------

    async def ensure_consumer(self, name: str, config: ConsumerConfig) -> tuple[ConsumerInfo, bool]:
        """Create a durable consumer, or find it there with the same configuration; the bool is "created".

        Raises InvalidName, LimitExceeded (too many), Conflict (it is there with another configuration).
        """
        raise NotImplementedError

    async def consumer(self, name: str) -> ConsumerInfo:
        """One consumer. Raises NotFound."""
        raise NotImplementedError

    async def consumers(self) -> list[ConsumerInfo]:
        """All consumers, by name."""
        raise NotImplementedError

    async def delete_consumer(self, name: str) -> None:
        """Forget a consumer and its deliveries. Raises NotFound."""
        raise NotImplementedError

    async def pull(
        self, name: str, limit: int = 1, wait: float = 0.0, follow: bool = False
    ) -> list[DeliveryInfo]:
        """Hand over the next deliveries, 1 to ``limit``, waiting up to ``wait`` seconds for the first.

        What is due again (nak, ack_wait) comes first, then new messages in seq order, then, with ``follow``,
        open ones. Empty if nothing came. Raises NotFound; also when the consumer is deleted meanwhile.
        """
        raise NotImplementedError

    async def ack(self, name: str, token: str) -> None:
        """Settle a delivery for good; durable when this returns.

        Raises:
            NotFound: no such consumer, or the token is not one of its.
            AlreadySettled: settled before, or handed to another worker.
            Conflict: the message is still open.
        """
        raise NotImplementedError

    async def nak(self, name: str, token: str, delay: float = 0.0) -> None:
        """Give a delivery back, to be handed over again after ``delay`` seconds. Raises as ``ack``."""
        raise NotImplementedError

    async def term(self, name: str, token: str) -> None:
        """Refuse a delivery for good. Raises as ``ack``, but an open message may be refused."""
        raise NotImplementedError

    async def in_progress(self, name: str, token: str) -> None:
        """Start ``ack_wait`` anew for a delivery. Raises NotFound, AlreadySettled."""
        raise NotImplementedError
