"""The broker's chapter on messages that are published: at once, many together, or resumably."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tensorbus.bus import log_context
from tensorbus.bus.messages import Receipt
from tensorbus.bus.topics import check_key, check_message_id, check_topic
from tensorbus.errors import (
    NotFound,
)

from . import kept_frames
from .batches import Outcome, Record
from .borrowing import Borrowed
from .lent import Loan, Progress
from .parts import Parts
from .uploads import Upload


class Publishing(Parts):
    """Messages on their way in."""

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

    async def borrow(self, loan: Loan) -> Borrowed:
        """Write an upload that another broker of this store decides on. Raises StorageError."""
        return await self._borrowing.take_up(loan)

    async def give_back(self, upload: Borrowed) -> Progress:
        """Write no more to what was borrowed; carried through even if the caller is cancelled."""
        return await self._workers.finish(self._borrowing.end(upload))

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
