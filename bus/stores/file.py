"""The embedded store: a directory with one SQLite file and one file of frames a message.

    DIR/lock                  flock: one broker at a time
    DIR/meta.db               rows (WAL, synchronous=FULL, user_version)
    DIR/frames/<id>.frames    the body of a message as it came

When a message is listed its frames are on the disk: the uploader has synced the file, and the transaction
that lists it syncs the folder before it commits. An upload leaves no row before that, so recovery is to
remove the files that no row tells of.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from tensorbus.bus.messages import MessageInfo, Receipt, TopicInfo
from tensorbus.errors import StorageError, StoreInUse

from . import consumer_rows, message_rows
from .base import FrameFile, Store, StoredConsumer, StoredDelivery
from .frame_files import FrameFolder, as_storage_error
from .metadata import Metadata

_log = logging.getLogger("tensorbus.store")

RESERVE_BYTES = 16 * 1024 * 1024


class FileStore(Store):
    """Messages in a directory of the local file system.

    Args:
        path: the data directory; it is made if it is missing.
        reserve_bytes: of the disk that frames leave free for rows.
    """

    def __init__(self, path: str | os.PathLike[str], reserve_bytes: int = RESERVE_BYTES) -> None:
        self.path = Path(path).absolute()
        self._folder = FrameFolder(self.path / "frames", reserve_bytes)
        self._metadata = Metadata(self.path / "meta.db", before_commit=self._sync_new_names)
        self._lock: int | None = None
        self._damaged: dict[str, str] = {}
        self._names_to_sync = False

    @property
    def damaged(self) -> Mapping[str, str]:
        """Found at the start; a damaged message is not delivered, but can be deleted."""
        return self._damaged

    # --- life ----------------------------------------------------------------------------------------

    async def start(self) -> list[StoredConsumer]:
        """Lock the directory, open the metadata, and remove what was never sealed."""
        return await asyncio.to_thread(self._start)

    def _start(self) -> list[StoredConsumer]:
        try:
            self._make_directories()
            self._take_lock()
        except OSError as problem:
            if isinstance(problem, StorageError):
                raise
            raise as_storage_error(problem, self.path) from problem
        try:
            self._metadata.open()
            sizes = self._metadata.read_now(message_rows.sizes)
            self._damaged = self._folder.recover(sizes)
            for what in self._damaged.values():
                _log.error("%s; it is not delivered; delete it, or restore the file and restart", what)
            return self._metadata.read_now(consumer_rows.consumers)
        except BaseException:
            self._close()
            raise

    async def close(self) -> None:
        """Commit what waits, close the metadata, and give the lock back."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._metadata.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _make_directories(self) -> None:
        if self._folder.path.is_dir():
            return
        self._folder.path.mkdir(parents=True, exist_ok=True)
        # The new names must outlive a power cut as well as what is written under them.
        for folder in (self.path, self.path.parent):
            FrameFolder(folder, 0).sync()

    def _take_lock(self) -> None:
        path = self.path / "lock"
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(lock)
            raise StoreInUse(
                f"{self.path} is in use by another broker (process {holder}); "
                "stop it, or use another directory"
            ) from None
        except BaseException:
            os.close(lock)
            raise
        self._lock = lock
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)

    # --- frames --------------------------------------------------------------------------------------

    def create(self, message_id: str) -> FrameFile:
        """An empty frame file."""
        return self._folder.create(message_id)

    def open_frames(self, message_id: str, size: int | None) -> int:
        """A descriptor of the frame file."""
        return self._folder.open(message_id, size)

    def check_room(self, size: int) -> None:
        """Whether the disk has ``size`` bytes beyond the reserve."""
        self._folder.check_room(size)

    def _sync_new_names(self) -> None:
        """In the committing thread: one sync of the folder covers every message of the transaction."""
        if self._names_to_sync:
            self._folder.sync()
            self._names_to_sync = False

    # --- messages ------------------------------------------------------------------------------------

    async def seal(self, info: MessageInfo, followers: Sequence[StoredDelivery]) -> Receipt:
        """List a message whose file has been synced."""
        listing = message_rows.seal(info, followers)

        def operation(connection: sqlite3.Connection) -> Receipt:
            self._names_to_sync = True
            return listing(connection)

        return await self._metadata.write(operation)

    async def delete(self, message_id: str) -> bool:
        """Rows first: a crash in between leaves a file without a row, which recovery removes."""
        found = await self._metadata.write(message_rows.delete(message_id))
        if found:
            self._damaged.pop(message_id, None)
            await asyncio.to_thread(self._folder.remove, message_id)
        return found

    async def receipt(self, topic: str, key: str) -> Receipt | None:
        """The first receipt of a key."""
        return await self._metadata.read(message_rows.receipt(topic, key))

    async def message(self, message_id: str) -> MessageInfo | None:
        """One sealed message."""
        return await self._metadata.read(message_rows.message(message_id))

    async def messages(
        self, pattern: str, after: int | None, limit: int, order: Literal["asc", "desc"]
    ) -> list[MessageInfo]:
        """Sealed messages by seq."""
        return await self._metadata.read(message_rows.listing(pattern, after, limit, order))

    async def scan(self, pattern: str, after: int, limit: int) -> tuple[list[MessageInfo], int]:
        """The next messages for a consumer."""
        return await self._metadata.read(message_rows.scan(pattern, after, limit))

    async def backlog(self, pattern: str, after: int) -> int:
        """Number of matching messages after a seq."""
        return await self._metadata.read(message_rows.backlog(pattern, after))

    async def topics(self) -> list[TopicInfo]:
        """Topics by name."""
        return await self._metadata.read(message_rows.topics)

    async def totals(self) -> tuple[int, int]:
        """Messages and bytes."""
        return await self._metadata.read(message_rows.totals)

    # --- consumers -----------------------------------------------------------------------------------

    async def add_consumer(self, consumer: StoredConsumer) -> StoredConsumer:
        """Keep a new consumer."""
        return await self._metadata.write(consumer_rows.add(consumer))

    async def delete_consumer(self, uid: str) -> None:
        """Forget a consumer."""
        await self._metadata.write(consumer_rows.remove(uid))

    async def hand_over(self, uid: str, position: int, deliveries: Sequence[StoredDelivery]) -> None:
        """Note deliveries."""
        await self._metadata.write(consumer_rows.hand_over(uid, position, deliveries))

    async def settle(self, uid: str, position: int, delivery: StoredDelivery) -> None:
        """Settle a delivery."""
        await self._metadata.write(consumer_rows.settle(uid, position, delivery))
