"""The embedded store: a directory with one SQLite file and one file of frames a message.

    DIR/lock                  flock: one broker at a time
    DIR/meta.db               rows (WAL, synchronous=FULL, user_version)
    DIR/frames/<id>.frames    the body of a message as it came; that of a small message is in its row
    DIR/quarantine/           frame files that were found damaged

When a message is listed its frames are on the disk: they are in the transaction that lists it, or the
uploader has synced the file, and the transaction syncs the folder before it commits. ``recovery.py`` says
what follows from that after a crash, ``syncing.py`` what happens where whoever runs the broker relaxes it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from tensorbus.bus.messages import MessageInfo, Receipt
from tensorbus.errors import StorageError, StoreDamaged

from . import (
    consumer_rows,
    damage_rows,
    dead_rows,
    delivery_rows,
    message_rows,
    policy_rows,
    retention_rows,
    upload_rows,
)
from .base import FrameFile
from .directory_lock import DirectoryLock
from .frame_files import FrameFolder, as_storage_error
from .metadata import Metadata
from .recovery import Recovered, recover
from .row_store import RowStore
from .syncing import Sync, Syncing, SyncObserver
from .values import (
    NO_TERMS,
    Copy,
    Disk,
    HandedOver,
    HandOver,
    Listing,
    Space,
    StoredConsumer,
    StoredDelivery,
    StoredPolicy,
    StoredUpload,
    Terms,
)

T = TypeVar("T")

_log = logging.getLogger("tensorbus.store")

RESERVE_BYTES = 16 * 1024 * 1024
_MOST_NAMED = 1000


class FileStore(RowStore):
    """Messages in a directory of the local file system.

    Args:
        path: the data directory; it is made if it is missing.
        reserve_bytes: of the disk that frames leave free for rows.
    """

    def __init__(self, path: str | os.PathLike[str], reserve_bytes: int = RESERVE_BYTES) -> None:
        self.path = Path(path).absolute()
        self.syncing = Syncing()
        self._folder = FrameFolder(
            self.path / "frames", self.path / "quarantine", reserve_bytes, self.syncing
        )
        self._metadata = Metadata(self.path / "meta.db", self._sync_new_names, self.syncing)
        self._lock = DirectoryLock(self.path)
        self._damaged: dict[str, str] = {}
        self._leftovers: Sequence[str] = ()
        self._names_to_sync = False

    def _read(self, query: Callable[[sqlite3.Connection], T]) -> Coroutine[Any, Any, T]:
        return self._metadata.read(query)

    @property
    def damaged(self) -> Mapping[str, str]:
        """A damaged message is not delivered, but can be deleted, and restored."""
        return self._damaged

    @property
    def leftovers(self) -> Sequence[str]:
        """Files that were removed at the start."""
        return self._leftovers

    def check_writable(self) -> None:
        """Raise StoreReadOnly after a failed sync."""
        self.syncing.check_writable()

    # --- life ----------------------------------------------------------------------------------------

    async def start(self, sync: Sync = "always") -> list[StoredConsumer]:
        """Lock the directory, open the metadata, and put in order what a crash has left."""
        self.syncing.mode = sync
        consumers, found = await asyncio.to_thread(self._start)
        try:
            if found.fresh:
                await self._metadata.write(damage_rows.add(found.fresh, time.time()))
            for message_id, _ in found.fresh:
                await asyncio.to_thread(self._folder.put_aside, message_id)
            for upload_id in found.superseded:
                await self.delete_upload(upload_id)
        except StorageError as problem:
            # A full disk must not keep the broker from starting: that is how it is emptied.
            _log.warning("what was found at the start could not be written down: %s", problem)
        return consumers

    def _start(self) -> tuple[list[StoredConsumer], Recovered]:
        try:
            self._make_directories()
            self._lock.take()
        except OSError as problem:
            if isinstance(problem, StorageError):
                raise
            raise as_storage_error(problem, self.path) from problem
        try:
            self._metadata.open()
            found = recover(self._metadata, self._folder)
            self._damaged, self._leftovers = found.damaged, found.leftovers
            self.syncing.start(self._metadata.log)
            return self._consumers(), found
        except BaseException:
            self._close()
            raise

    def _consumers(self) -> list[StoredConsumer]:
        """Consumers without their deliveries of damaged messages, which wait in the rows."""
        return [
            replace(
                consumer,
                deliveries=tuple(
                    d for d in consumer.deliveries if d.settled or d.message not in self._damaged
                ),
            )
            for consumer in self._metadata.read_now(consumer_rows.consumers)
        ]

    async def close(self) -> None:
        """Commit what waits, close the metadata, and give the lock back."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self.syncing.stop()
        self._metadata.close()
        self._lock.give_back()

    def _make_directories(self) -> None:
        if self._folder.path.is_dir():
            return
        self._folder.path.mkdir(parents=True, exist_ok=True)
        # The new names must outlive a power cut as well as what is written under them.
        for folder in (self.path, self.path.parent):
            self.syncing.folder(folder)

    # --- frames --------------------------------------------------------------------------------------

    def create(self, message_id: str) -> FrameFile:
        """An empty frame file."""
        return self._folder.create(message_id)

    def reopen(self, message_id: str, size: int) -> FrameFile:
        """The frame file of an upload."""
        return self._folder.reopen(message_id, size)

    def open_frames(self, message_id: str, size: int | None) -> int | bytes:
        """A descriptor of the frame file, or the frames of a small message."""
        try:
            return self._folder.open(message_id, size)
        except StoreDamaged:
            body = self._metadata.read_blocking(message_rows.body(message_id))
            if body is None or (size is not None and len(body) != size):
                raise
            return body

    def check_room(self, size: int) -> None:
        """Whether the disk has ``size`` bytes beyond the reserve."""
        self._folder.check_room(size)

    def _sync_new_names(self) -> None:
        """In the committing thread: one sync of the folder covers every message of the transaction."""
        if self._names_to_sync:
            self._folder.sync()
            self._names_to_sync = False

    # --- damage --------------------------------------------------------------------------------------

    async def quarantine(self, message_id: str, reason: str, found: float) -> bool:
        """Note it."""
        known = message_id in self._damaged
        self._damaged.setdefault(message_id, reason)
        fresh = await self._metadata.write(damage_rows.add([(message_id, reason)], found))
        if not fresh and not known:
            self._damaged.pop(message_id, None)  # it was deleted meanwhile
        return bool(fresh)

    def put_aside(self, message_id: str) -> None:
        """Behind the row: a crash in between leaves the file where it is, which harms nobody."""
        self._folder.put_aside(message_id)

    async def restore(self, message_id: str, *, in_place: bool) -> list[StoredDelivery]:
        """File first: a crash in between leaves it damaged, and the next scrub finds it whole again."""
        move = self._folder.drop_quarantined if in_place else self._folder.put_back
        await asyncio.to_thread(move, message_id)
        waiting = await self._metadata.write(damage_rows.remove(message_id))
        self._damaged.pop(message_id, None)
        return waiting

    def open_quarantined(self, message_id: str, size: int) -> int:
        """A descriptor of a frame file that was put aside."""
        return self._folder.open_quarantined(message_id, size)

    def strays(self) -> list[str]:
        """Files that have come while the broker runs, and not by it."""
        found: list[str] = []
        for batch in self._folder.ids():
            known = self._metadata.read_apart(damage_rows.known(batch))
            # An upload has a file before it has a row.
            strange = [
                name for name in batch if name not in known and not self._folder.is_being_written(name)
            ]
            found += [f"frames/{name}.frames" for name in strange]
            if len(found) >= _MOST_NAMED:
                break
        return found[:_MOST_NAMED]

    def check_rows(self) -> list[str]:
        """What is wrong with the rows."""
        return self._metadata.read_apart(damage_rows.check)

    # --- messages ------------------------------------------------------------------------------------

    async def seal(
        self,
        info: MessageInfo,
        followers: Sequence[StoredDelivery],
        body: bytes | None = None,
        terms: Terms = NO_TERMS,
    ) -> Receipt:
        """List a message whose file has been synced, or which brings its frames along."""
        listing = message_rows.seal(info, followers, body, terms)

        def operation(connection: sqlite3.Connection) -> Receipt | retention_rows.Refusal:
            self._names_to_sync |= body is None
            return listing(connection)

        outcome = await self._metadata.write(operation)
        if not isinstance(outcome, Receipt):
            raise outcome
        if terms.replaces is not None and outcome.id == info.id:
            await self._forget([terms.replaces], [terms.replaces])
        return outcome

    async def seal_all(self, listings: Sequence[Listing]) -> Sequence[Receipt | retention_rows.Refusal]:
        """List small messages with their frames."""
        operations = [message_rows.seal(each.info, (), each.body, each.terms) for each in listings]

        def operation(connection: sqlite3.Connection) -> list[Receipt | retention_rows.Refusal]:
            return [listing(connection) for listing in operations]

        return await self._metadata.write(operation)

    async def delete(self, message_id: str) -> bool:
        """Remove one message."""
        return bool(await self.remove([message_id]))

    async def remove(self, message_ids: Sequence[str]) -> list[str]:
        """Rows first: a crash in between leaves files without rows, which recovery removes."""
        return await self._remove(retention_rows.remove(message_ids))

    async def _remove(self, operation: Callable[[sqlite3.Connection], retention_rows.Removed]) -> list[str]:
        removed = await self._metadata.write(operation)
        await self._forget(removed, [message_id for message_id, has_file in removed.items() if has_file])
        return list(removed)

    async def _forget(self, removed: Iterable[str], files: Sequence[str]) -> None:
        """Messages whose rows are gone, and their files."""
        for message_id in removed:
            self._damaged.pop(message_id, None)
        if files:
            await asyncio.to_thread(self._folder.remove_all, files)

    # --- uploads -------------------------------------------------------------------------------------

    async def add_upload(self, upload: StoredUpload) -> None:
        """Keep an upload; the name of its file, if it has one, is synced with it."""

        def operation(connection: sqlite3.Connection) -> None:
            self._names_to_sync = True
            upload_rows.add(upload)(connection)

        await self._metadata.write(operation)

    async def touch_upload(self, message_id: str, expires: float, length: int | None) -> None:
        """Note when an upload may be removed."""
        await self._metadata.write(upload_rows.touch(message_id, expires, length))

    async def delete_upload(self, message_id: str) -> bool:
        """Row first, as with messages; one that was sealed meanwhile is no upload any more."""
        found = await self._metadata.write(upload_rows.remove(message_id))
        if found:
            await asyncio.to_thread(self._folder.remove, message_id)
        return found

    # --- retention -----------------------------------------------------------------------------------

    async def put_policy(self, policy: StoredPolicy) -> None:
        """Keep a policy."""
        await self._metadata.write(policy_rows.put(policy))

    async def delete_policy(self, name: str) -> None:
        """Forget a policy."""
        await self._metadata.write(policy_rows.remove(name))

    async def make_room(
        self, topic: str, max_messages: int | None, max_bytes: int | None, limit: int
    ) -> list[str]:
        """Remove the oldest messages."""
        return await self._remove(retention_rows.make_room(topic, max_messages, max_bytes, limit))

    async def prune_keys(self, topic: str, before: float, limit: int) -> int:
        """Forget old keys."""
        return await self._metadata.write(retention_rows.prune_keys(topic, before, limit))

    def observe_syncs(self, observer: SyncObserver) -> None:
        """Of frame files, folders and rows."""
        self.syncing.observer = observer

    async def disk(self) -> Disk:
        """What statvfs says of the data directory."""
        try:
            found = await asyncio.to_thread(os.statvfs, self.path)
        except OSError as problem:
            raise as_storage_error(problem, self.path) from problem
        return Disk(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)

    async def space(self) -> Space:
        """What the rows take."""
        return await self._metadata.space()

    async def give_back(self, size: int) -> None:
        """Shrink the file of rows."""
        await self._metadata.give_back(size)

    async def tidy(self) -> None:
        """Bring the log over, and shorten it."""
        await self._metadata.tidy()

    # --- consumers -----------------------------------------------------------------------------------

    async def add_consumer(self, consumer: StoredConsumer) -> StoredConsumer:
        """Keep a new consumer."""
        return await self._metadata.write(consumer_rows.add(consumer))

    async def delete_consumer(self, uid: str) -> None:
        """Forget a consumer."""
        await self._metadata.write(consumer_rows.remove(uid))

    async def take(self, wanted: HandOver) -> HandedOver:
        """Hand messages over."""
        return await self._metadata.write(delivery_rows.take(wanted, self._damaged))

    async def note(self, deliveries: Sequence[StoredDelivery]) -> None:
        """Note deliveries."""
        await self._metadata.write(delivery_rows.note(deliveries))

    async def settle(self, uid: str, position: int, deliveries: Sequence[StoredDelivery]) -> None:
        """Settle deliveries."""
        await self._metadata.write(delivery_rows.settle(uid, position, deliveries))

    async def bury(
        self, uid: str, position: int, delivery: StoredDelivery, letter: Copy
    ) -> MessageInfo | None:
        """Settle a delivery and list its letter."""
        return await self._copied(
            letter, lambda linked: dead_rows.bury(uid, position, delivery, letter, linked)
        )

    async def replay(self, again: Copy) -> MessageInfo | None:
        """Replay a letter."""
        info = await self._copied(again, lambda linked: dead_rows.replay(again, linked))
        if info is not None:
            await asyncio.to_thread(self._folder.remove, again.source)
        return info

    async def _copied(
        self, copy: Copy, listing: Callable[[bool], Callable[[sqlite3.Connection], MessageInfo | None]]
    ) -> MessageInfo | None:
        """Link the frames, then list them; a crash in between leaves a file without a row."""
        linked = await asyncio.to_thread(self._folder.link, copy.source, copy.id)
        info: MessageInfo | None = None

        def operation(connection: sqlite3.Connection) -> MessageInfo | None:
            self._names_to_sync |= linked
            return listing(linked)(connection)

        try:
            info = await self._metadata.write(operation)
        finally:
            if info is None and linked:
                await asyncio.to_thread(self._folder.remove, copy.id)
            self._folder.linked(copy.id)
        return info
