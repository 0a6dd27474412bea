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
from typing import Literal, Protocol

from tensorbus.bus.damage import Damage
from tensorbus.bus.messages import MessageInfo, Receipt, TopicInfo
from tensorbus.errors import LimitExceeded, QuotaExceeded

from .syncing import Sync, SyncObserver
from .values import (
    NO_TERMS,
    Aged,
    Copy,
    Disk,
    HandedOver,
    HandOver,
    Listing,
    Space,
    StoredConsumer,
    StoredDelivery,
    StoredMessage,
    StoredPolicy,
    StoredUpload,
    Terms,
    Usage,
)

__all__ = [
    "NO_TERMS",
    "Aged",
    "Copy",
    "Disk",
    "FrameFile",
    "HandOver",
    "HandedOver",
    "Listing",
    "Part",
    "RemoteFrames",
    "Space",
    "Store",
    "StoredConsumer",
    "StoredDelivery",
    "StoredMessage",
    "StoredPolicy",
    "StoredUpload",
    "Terms",
    "Usage",
]

Part = bytes | bytearray | memoryview


class FrameFile(ABC):
    """The frames of a message being written. All methods block; one thread at a time, but for sync."""

    @abstractmethod
    def append(self, parts: Sequence[Part]) -> None:
        """Write ``parts`` at the end. Raises StorageFull, StorageError."""

    @abstractmethod
    def sync(self) -> None:
        """What was appended before this call is on stable storage when it returns. Raises as ``append``."""

    def rest(self) -> None:  # noqa: B027 - most files have nothing to do for it
        """Nothing is appended for a while: what was is where the next process finds it.

        Raises as ``append``.
        """

    @abstractmethod
    def close(self) -> None:
        """Nothing more will be written; the frames stay. Idempotent."""

    @abstractmethod
    def discard(self) -> None:
        """Close it and remove the frames."""


class RemoteFrames(Protocol):
    """The frames of one message somewhere else than in a file. Blocks; one thread at a time."""

    @property
    def size(self) -> int:
        """Bytes there are now."""
        ...

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill ``buffer`` from ``offset`` on, as far as there are bytes; how many. Raises StorageError."""
        ...

    def doubt(self) -> bool:
        """What was read is not what it should be: read on, and again, from where it is for certain, and not
        from a copy that may lag behind. False if that is where it came from."""
        ...

    def close(self) -> None:
        """Nothing more is read. Idempotent."""
        ...


class Store(ABC):
    """Frames and rows on stable storage.

    Attributes:
        kind: what it is made of, for those who watch.
    """

    kind: str = "files"

    @property
    def leading(self) -> bool:
        """Whether the broker of this process decides; where several share a store, one of them does."""
        return True

    async def lead(self) -> list[StoredConsumer] | None:
        """Decide from now on: the consumers, as ``start``. None if another broker was faster."""
        return []

    def give_up_soon(self) -> None:  # noqa: B027 - a disk answers
        """The broker stops: calls that wait for other machines fail with StorageError, unless these answer
        within a few seconds."""

    @abstractmethod
    async def start(self, sync: Sync = "always") -> list[StoredConsumer]:
        """Take the store into use, discard what is neither sealed nor an upload, and return the consumers.

        ``sync`` says when what is written has to be on stable storage. Deliveries of damaged messages are
        left out.

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

    @property
    @abstractmethod
    def leftovers(self) -> Sequence[str]:
        """Files without a row that were removed at the start; the first of them, by name."""

    @abstractmethod
    def check_writable(self) -> None:
        """Raise StoreReadOnly if a write has failed in a way that leaves no trust in the next."""

    # --- damage --------------------------------------------------------------------------------------

    @abstractmethod
    async def quarantine(self, message_id: str, reason: str, found: float) -> bool:
        """Remember for good that a sealed message is damaged; False if it is not there, or was known to be.

        It counts as damaged even if that cannot be written. Its deliveries stay, for when it is restored.
        """

    @abstractmethod
    def put_aside(self, message_id: str) -> None:
        """Move the file of a damaged message out of the way, if it has one; blocks. Raises StorageError."""

    @abstractmethod
    async def restore(self, message_id: str, *, in_place: bool) -> list[StoredDelivery]:
        """A damaged message is whole again: what of it is not settled.

        Its frames are where they belong (``in_place``), or those that were put aside go back there.
        """

    @abstractmethod
    async def damages(self, after: int, limit: int) -> list[Damage]:
        """Damaged messages by seq, behind ``after``."""

    @abstractmethod
    def open_quarantined(self, message_id: str, size: int) -> int | bytes | RemoteFrames:
        """A descriptor of the file that was put aside; blocks. Raises StoreDamaged as ``open_frames``."""

    @abstractmethod
    def strays(self) -> list[str]:
        """Names of frame files that belong to no message and no upload; the first of them. Blocks."""

    @abstractmethod
    def check_rows(self) -> list[str]:
        """What is wrong with the rows; blocks as long as it takes to read them all, but holds up nobody."""

    # --- frames; these block -------------------------------------------------------------------------

    @abstractmethod
    def create(self, message_id: str) -> FrameFile:
        """An empty run of frames. Raises StorageFull, StorageError."""

    @abstractmethod
    def open_frames(self, message_id: str, size: int | None) -> int | bytes | RemoteFrames:
        """A message's frames: a read-only descriptor, which outlives their removal, the bytes themselves, or
        where to get them from.

        Raises:
            StoreDamaged: a sealed message (``size`` in bytes) has no frames, or of another size.
        """

    @abstractmethod
    def reopen(self, message_id: str, size: int) -> FrameFile:
        """The frames of an upload, cut to the first ``size`` bytes, to go on behind them.

        Raises StorageFull, StorageError.
        """

    @abstractmethod
    def check_room(self, size: int) -> None:
        """Raise StorageFull if ``size`` more bytes would not fit now."""

    # --- messages ------------------------------------------------------------------------------------

    @abstractmethod
    async def seal(
        self,
        info: MessageInfo,
        followers: Sequence[StoredDelivery],
        body: bytes | None = None,
        terms: Terms = NO_TERMS,
    ) -> Receipt:
        """Give a message its seq and list it; messages are listed in the order of these calls.

        ``info`` has all but the seq. ``followers`` are deliveries handed out while it was open (their seq is
        filled in here). ``body`` are the frames of a small message, kept with its row; without it they are in
        its file, which must have been synced before. If its topic holds its key already, nothing is stored
        and the first receipt returned, as a duplicate; but see ``Terms.replaces``. Its row among the uploads
        goes, if it has one.

        Raises:
            QuotaExceeded: ``terms`` leave no room; nothing is stored.
            LimitExceeded: there will never be room for so large a message.
        """

    @abstractmethod
    async def seal_all(
        self, listings: Sequence[Listing]
    ) -> Sequence[Receipt | QuotaExceeded | LimitExceeded]:
        """As ``seal``, of many messages in one transaction and in their order; each stands for itself.

        What ``seal`` raises for one of them is returned in its place; it is raised only when nothing at all
        could be stored.
        """

    @abstractmethod
    async def delete(self, message_id: str) -> bool:
        """Remove a sealed message, its deliveries and frames, but not its key; False if it is not there."""

    @abstractmethod
    async def remove(self, message_ids: Sequence[str]) -> list[str]:
        """As ``delete``, of many at once; which of them were there."""

    @abstractmethod
    async def bodies(self, message_ids: Sequence[str]) -> dict[str, bytes]:
        """The frames of those of the messages that are kept with their rows."""

    @abstractmethod
    async def receipt(self, topic: str, key: str) -> Receipt | None:
        """The receipt under which a key was first stored, whether or not the message is still there."""

    @abstractmethod
    async def message(self, message_id: str) -> MessageInfo | None:
        """One sealed message."""

    @abstractmethod
    async def messages(
        self, pattern: str, after: int | None, limit: int, order: Literal["asc", "desc"], dead: bool = False
    ) -> list[MessageInfo]:
        """Sealed messages with matching topics, by seq, behind ``after``; or dead letters only."""

    @abstractmethod
    async def page(
        self, pattern: str, after: int | None, limit: int, order: Literal["asc", "desc"], dead: bool = False
    ) -> tuple[list[MessageInfo], bool]:
        """As ``messages``, but no more than fits a page, and whether there are others behind them.

        It ends early with the message that fills a mebibyte of headers and pipelines: a thousand may have
        sixty times as much.
        """

    @abstractmethod
    async def backlog(self, pattern: str, after: int) -> int:
        """Number of matching messages after a seq that are not damaged."""

    @abstractmethod
    async def topics(self) -> list[TopicInfo]:
        """Topics with sealed messages, by name."""

    @abstractmethod
    async def totals(self) -> tuple[int, int]:
        """Sealed messages, and their bytes."""

    # --- uploads -------------------------------------------------------------------------------------

    @abstractmethod
    async def add_upload(self, upload: StoredUpload) -> None:
        """Keep an upload over restarts; its frame file is then kept as well."""

    @abstractmethod
    async def uploads(self) -> list[StoredUpload]:
        """All uploads that are kept, in the order in which they were made."""

    @abstractmethod
    async def touch_upload(self, message_id: str, expires: float, length: int | None) -> None:
        """Note when an upload may be removed, and its length if that is known by now."""

    @abstractmethod
    async def delete_upload(self, message_id: str) -> bool:
        """Forget an upload and remove its frames; False if it is not there (any more)."""

    # --- retention -----------------------------------------------------------------------------------

    @abstractmethod
    async def put_policy(self, policy: StoredPolicy) -> None:
        """Keep a policy in the place of its namesake."""

    @abstractmethod
    async def delete_policy(self, name: str) -> None:
        """Forget a policy."""

    @abstractmethod
    async def policies(self) -> list[StoredPolicy]:
        """All policies, by name."""

    @abstractmethod
    async def usage(self) -> dict[str, Usage]:
        """What each topic with messages holds."""

    @abstractmethod
    async def first_sealed(self) -> dict[str, float]:
        """When the first message of each topic was sealed."""

    @abstractmethod
    async def topic_usage(self, topic: str) -> Usage:
        """What one topic holds."""

    @abstractmethod
    async def owner_usage(self, owner: str) -> Usage:
        """What the holder of one token has stored."""

    @abstractmethod
    async def oldest(self, topic: str, limit: int) -> list[Aged]:
        """The first messages of a topic, by seq."""

    @abstractmethod
    async def make_room(
        self, topic: str, max_messages: int | None, max_bytes: int | None, limit: int
    ) -> list[str]:
        """Remove the oldest messages of a topic, up to ``limit``, while it holds too much; their ids."""

    @abstractmethod
    async def settled_by_all(self, topic: str, consumers: Sequence[str], limit: int) -> list[str]:
        """Messages of a topic, by seq, that each consumer (uid) has settled; all if there are none."""

    @abstractmethod
    async def topics_of(self, message_ids: Sequence[str]) -> dict[str, str]:
        """The topics of those of the messages that are there."""

    @abstractmethod
    async def settled_by(self, message_id: str) -> list[str]:
        """The uids of all consumers that will not be handed a message (again)."""

    @abstractmethod
    async def settled_among(self, message_ids: Sequence[str], consumers: Sequence[str]) -> list[str]:
        """Which of these messages each of these consumers has settled."""

    @abstractmethod
    async def prune_keys(self, topic: str, before: float, limit: int) -> int:
        """Forget keys of a topic stored before a moment whose message is gone; how many it were."""

    @abstractmethod
    async def topics_with_old_keys(self) -> dict[str, float]:
        """Topics with keys whose message is gone, and when the oldest of these was stored."""

    @abstractmethod
    def observe_syncs(self, observer: SyncObserver) -> None:
        """Have ``observer`` told of every flush to stable storage, in the thread that made it."""

    @abstractmethod
    async def disk(self) -> Disk:
        """The file system that the messages are on."""

    @abstractmethod
    async def space(self) -> Space:
        """What the rows take."""

    @abstractmethod
    async def give_back(self, size: int) -> None:
        """Give up to ``size`` free bytes of the rows back to the disk; ``tidy`` does it then."""

    @abstractmethod
    async def tidy(self) -> None:
        """Shorten the log of the rows, if nothing was written since the last call."""

    # --- consumers -----------------------------------------------------------------------------------

    @abstractmethod
    async def add_consumer(self, consumer: StoredConsumer) -> StoredConsumer:
        """Keep a new consumer; one that starts with new messages gets the present end as its position."""

    @abstractmethod
    async def delete_consumer(self, uid: str) -> None:
        """Forget a consumer and its deliveries."""

    @abstractmethod
    async def take(self, wanted: HandOver) -> HandedOver:
        """Find what a pull is to hand over, and note it and how far the consumer is, in one transaction.

        Every message that was listed by a call before this one is seen. Damaged ones are passed over.
        """

    @abstractmethod
    async def next_match(self, pattern: str, after: int) -> int:
        """The seq of the first matching message behind a seq; without one, the end of the log and one."""

    @abstractmethod
    async def note(self, deliveries: Sequence[StoredDelivery]) -> None:
        """Note another time, or that it was given back, for deliveries that were handed over."""

    @abstractmethod
    async def settle(self, uid: str, position: int, deliveries: Sequence[StoredDelivery]) -> None:
        """Deliveries are settled for good; remembered until the consumer's position is beyond them."""

    @abstractmethod
    async def bury(
        self, uid: str, position: int, delivery: StoredDelivery, letter: Copy
    ) -> MessageInfo | None:
        """Settle a delivery and list its message as a dead letter, in one transaction.

        Raises StorageFull, StorageError: neither was done. None if the message is gone: there is no letter
        then, but the delivery is settled. A crash leaves both or none, and at most a file without a row.
        """

    @abstractmethod
    async def replay(self, again: Copy) -> MessageInfo | None:
        """List a dead letter as a message of ``again.topic`` and remove the letter, in one transaction.

        None if the letter is gone.
        """
