"""What a store answers from its rows, wherever it has these from."""

from __future__ import annotations

import sqlite3
from abc import abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Literal, TypeVar

from tensorbus.bus.damage import Damage
from tensorbus.bus.messages import MessageInfo, Receipt, TopicInfo

from . import damage_rows, message_rows, policy_rows, retention_rows, upload_rows
from .base import Store
from .values import Aged, StoredPolicy, StoredUpload, Usage

T = TypeVar("T")


class RowStore(Store):
    """A store with rows in SQLite; ``Store`` says what each method is for."""

    @abstractmethod
    def _read(self, query: Callable[[sqlite3.Connection], T]) -> Coroutine[Any, Any, T]:
        """The result of ``query``, which only reads. Raises StorageError."""

    # --- damage ------------------------------------------------------------------------------------

    async def damages(self, after: int, limit: int) -> list[Damage]:
        """Damaged messages by seq."""
        return await self._read(damage_rows.damages(after, limit))

    # --- messages ----------------------------------------------------------------------------------

    async def bodies(self, message_ids: Sequence[str]) -> dict[str, bytes]:
        """Frames that are kept with the rows."""
        return await self._read(message_rows.bodies(message_ids))

    async def receipt(self, topic: str, key: str) -> Receipt | None:
        """The first receipt of a key."""
        return await self._read(message_rows.receipt(topic, key))

    async def message(self, message_id: str) -> MessageInfo | None:
        """One sealed message."""
        return await self._read(message_rows.message(message_id))

    async def messages(
        self, pattern: str, after: int | None, limit: int, order: Literal["asc", "desc"], dead: bool = False
    ) -> list[MessageInfo]:
        """Sealed messages by seq."""
        return await self._read(message_rows.listing(pattern, after, limit, order, dead))

    async def page(
        self, pattern: str, after: int | None, limit: int, order: Literal["asc", "desc"], dead: bool = False
    ) -> tuple[list[MessageInfo], bool]:
        """Sealed messages by seq, as many as fit a page."""
        return await self._read(message_rows.page(pattern, after, limit, order, dead))

    async def backlog(self, pattern: str, after: int) -> int:
        """Number of matching messages after a seq."""
        return await self._read(message_rows.backlog(pattern, after))

    async def topics(self) -> list[TopicInfo]:
        """Topics by name."""
        return await self._read(message_rows.topics)

    async def totals(self) -> tuple[int, int]:
        """Messages and bytes."""
        return await self._read(message_rows.totals)

    # --- uploads -----------------------------------------------------------------------------------

    async def uploads(self) -> list[StoredUpload]:
        """All uploads."""
        return await self._read(upload_rows.uploads)

    # --- retention ---------------------------------------------------------------------------------

    async def policies(self) -> list[StoredPolicy]:
        """All policies."""
        return await self._read(policy_rows.policies)

    async def usage(self) -> dict[str, Usage]:
        """What each topic holds."""
        return await self._read(retention_rows.usage)

    async def first_sealed(self) -> dict[str, float]:
        """The age of each topic."""
        return await self._read(retention_rows.first_sealed)

    async def topic_usage(self, topic: str) -> Usage:
        """What one topic holds."""
        return await self._read(retention_rows.topic_usage(topic))

    async def owner_usage(self, owner: str) -> Usage:
        """What one owner has stored."""
        return await self._read(retention_rows.owner_usage(owner))

    async def oldest(self, topic: str, limit: int) -> list[Aged]:
        """The first messages of a topic."""
        return await self._read(retention_rows.oldest(topic, limit))

    async def settled_by_all(self, topic: str, consumers: Sequence[str], limit: int) -> list[str]:
        """Messages of a topic that nobody waits for."""
        return await self._read(retention_rows.settled_by_all(topic, consumers, limit))

    async def topics_of(self, message_ids: Sequence[str]) -> dict[str, str]:
        """The topics of messages."""
        return await self._read(retention_rows.topics_of(message_ids))

    async def settled_by(self, message_id: str) -> list[str]:
        """Those who are done with a message."""
        return await self._read(retention_rows.settled_by(message_id))

    async def settled_among(self, message_ids: Sequence[str], consumers: Sequence[str]) -> list[str]:
        """Those of the messages that nobody waits for."""
        return await self._read(retention_rows.settled_among(message_ids, consumers))

    async def topics_with_old_keys(self) -> dict[str, float]:
        """Topics with keys that may be forgotten one day."""
        return await self._read(retention_rows.topics_with_old_keys)

    # --- consumers ---------------------------------------------------------------------------------

    async def next_match(self, pattern: str, after: int) -> int:
        """The next matching message."""
        return await self._read(message_rows.next_match(pattern, after))
