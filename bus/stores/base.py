"""What the broker asks of a store.

A store keeps two things: the frames of each message, as one run of bytes under the message's id, and rows
about messages, idempotency keys, consumers and deliveries. It judges neither: which frame is valid and who
gets which message is the broker's business.

Calls that are plain methods block and run in worker threads; coroutines may be awaited on the event loop, and
what they change is on stable storage when they return. Times are seconds since the epoch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from tensorbus.bus.consumers import ConsumerConfig
from tensorbus.bus.messages import MessageInfo, Receipt, TopicInfo

Part = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class StoredDelivery:
    """A message that was handed to a consumer.

    Attributes:
        consumer: the consumer's uid.
        message: the message's id.
        seq: of the message.
        attempt: how often it was handed over.
        due: when it may be handed over again.
        settled: True for one that is settled for good but lies beyond the consumer's position.
    """

    consumer: str
    message: str
    seq: int
    attempt: int
    due: float
    settled: bool = False


@dataclass(frozen=True, slots=True)
class StoredConsumer:
    """A durable consumer. ``uid`` is new with each creation, so that tokens of a namesake are not its own."""

    name: str
    uid: str
    config: ConsumerConfig
    position: int
    created: datetime
    deliveries: tuple[StoredDelivery, ...] = ()


class FrameFile(ABC):
    """The frames of a message being written. All methods block; one thread at a time, but for sync."""

    @abstractmethod
    def append(self, parts: Sequence[Part]) -> None:
        """Write ``parts`` at the end. Raises StorageFull, StorageError."""

    @abstractmethod
    def sync(self) -> None:
        """What was appended before this call is on stable storage when it returns. Raises as ``append``."""

    @abstractmethod
    def close(self) -> None:
        """Nothing more will be written; the frames stay. Idempotent."""

    @abstractmethod
    def discard(self) -> None:
        """Close it and remove the frames."""


class Store(ABC):
    """Frames and rows on stable storage."""

    @abstractmethod
    async def start(self) -> list[StoredConsumer]:
        """Take the store into use, discard what was never sealed, and return the consumers.

        Raises:
            StoreInUse, StoreVersion, StorageError.
        """

    @abstractmethod
    async def close(self) -> None:
        """Give the store back. Idempotent."""

    @property
    @abstractmethod
    def damaged(self) -> Mapping[str, str]:
        """Sealed messages whose frames were found damaged: id and what is wrong."""

    # --- frames; these block -------------------------------------------------------------------------

    @abstractmethod
    def create(self, message_id: str) -> FrameFile:
        """An empty run of frames. Raises StorageFull, StorageError."""

    @abstractmethod
    def open_frames(self, message_id: str, size: int | None) -> int:
        """A read-only descriptor of a message's frames; it outlives their removal.

        Raises:
            StoreDamaged: a sealed message (``size`` in bytes) has no frames, or of another size.
        """

    @abstractmethod
    def check_room(self, size: int) -> None:
        """Raise StorageFull if ``size`` more bytes would not fit now."""

    # --- messages ------------------------------------------------------------------------------------

    @abstractmethod
    async def seal(self, info: MessageInfo, followers: Sequence[StoredDelivery]) -> Receipt:
        """Give a message its seq and list it; its frames must have been synced before.

        ``info`` has all but the seq. ``followers`` are deliveries handed out while it was open (their seq is
        filled in here). If its topic holds its key already, nothing is stored and the first receipt returned,
        as a duplicate.
        """

    @abstractmethod
    async def delete(self, message_id: str) -> bool:
        """Remove a sealed message, its deliveries and frames, but not its key; False if it is not there."""

    @abstractmethod
    async def receipt(self, topic: str, key: str) -> Receipt | None:
        """The receipt under which a key was first stored, whether or not the message is still there."""

    @abstractmethod
    async def message(self, message_id: str) -> MessageInfo | None:
        """One sealed message."""

    @abstractmethod
    async def messages(
        self, pattern: str, after: int | None, limit: int, order: Literal["asc", "desc"]
    ) -> list[MessageInfo]:
        """Sealed messages with matching topics, by seq, behind ``after`` in that order."""

    @abstractmethod
    async def scan(self, pattern: str, after: int, limit: int) -> tuple[list[MessageInfo], int]:
        """The next ``limit`` matching messages after a seq, and the seq up to which that was looked at."""

    @abstractmethod
    async def backlog(self, pattern: str, after: int) -> int:
        """Number of matching messages after a seq."""

    @abstractmethod
    async def topics(self) -> list[TopicInfo]:
        """Topics with sealed messages, by name."""

    @abstractmethod
    async def totals(self) -> tuple[int, int]:
        """Sealed messages, and their bytes."""

    # --- consumers -----------------------------------------------------------------------------------

    @abstractmethod
    async def add_consumer(self, consumer: StoredConsumer) -> StoredConsumer:
        """Keep a new consumer; one that starts with new messages gets the present end as its position."""

    @abstractmethod
    async def delete_consumer(self, uid: str) -> None:
        """Forget a consumer and its deliveries."""

    @abstractmethod
    async def hand_over(self, uid: str, position: int, deliveries: Sequence[StoredDelivery]) -> None:
        """Note deliveries (new ones, or a new attempt or time for old ones) and how far the consumer is."""

    @abstractmethod
    async def settle(self, uid: str, position: int, delivery: StoredDelivery) -> None:
        """A delivery is settled for good; it is remembered as such until the position is beyond it."""
