"""All messages that are being published."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from tensorbus.bus.activity import Transfer
from tensorbus.bus.clock import Clock
from tensorbus.bus.measures import Measures
from tensorbus.bus.messages import MessageInfo, Receipt
from tensorbus.bus.stores.base import Store
from tensorbus.bus.stores.values import StoredUpload
from tensorbus.errors import BrokerBusy, BrokerUnavailable, Conflict, LimitExceeded, MessageReplaced

from .consumers import Consumers
from .message_ids import new_id
from .open_message import OpenMessage, Phase
from .quotas import Quotas
from .settings import BrokerSettings
from .upload_host import UploadHost
from .uploads import Upload
from .workers import Workers

SOURCE = "source"
"""Metadata of an upload that says what its bytes are made of: who creates it again with the same goes on."""


@dataclass(frozen=True, slots=True)
class Replaced:
    """A damaged message whose key is published again, and the uids of consumers that are done with it."""

    id: str
    settled_by: Sequence[str]


class OpenMessages:
    """Uploads by message id, at most one for each topic and idempotency key.

    Attributes:
        messages: what the uploads have verified so far, in the order in which they began.
        sealed, aborted: totals since the start.
    """

    def __init__(
        self,
        store: Store,
        settings: BrokerSettings,
        workers: Workers,
        clock: Clock,
        consumers: Consumers,
        quotas: Quotas,
        measures: Measures,
    ) -> None:
        self._store = store
        self._measures = measures
        self._settings = settings
        self._workers = workers
        self._clock = clock
        self._consumers = consumers
        self._quotas = quotas
        self._host = UploadHost(
            store,
            settings,
            workers,
            clock,
            self._changed,
            consumers.followers,
            self._parked,
            quotas.look_up,
            quotas.terms,
        )
        self._uploads: dict[str, Upload] = {}
        self._keys: dict[tuple[str, str], Upload] = {}
        self._listing: dict[tuple[str, str], asyncio.Event] = {}
        self._warm: dict[str, Upload] = {}
        self._resumable = 0
        self._closing = False
        self._received = 0
        self.messages: dict[str, OpenMessage] = {}
        self.sealed = 0
        self.aborted = 0

    @property
    def received(self) -> int:
        """Bytes that came in since the start."""
        return self._received + sum(upload.received for upload in self._uploads.values())

    @property
    def parked(self) -> int:
        """Resumable uploads to which nobody is writing."""
        return sum(not upload.written for upload in self._uploads.values())

    @property
    def uploads(self) -> Mapping[str, Upload]:
        """The uploads by message id."""
        return self._uploads

    def transfers(self) -> list[Transfer]:
        """Everything that is being published, in the order in which it began."""
        found: list[Transfer] = []
        for upload in self._uploads.values():
            info, kept = upload.info, upload.kept
            length = upload.length if kept is None else kept.length
            total = info.wire_bytes if length is None else length
            received = info.bytes if kept is None else upload.offset
            found.append(Transfer(info, received, total, kept is not None, not upload.written))
        return found

    def load(self, stored: Sequence[StoredUpload]) -> None:
        """Take up the uploads that an earlier process has left; their files are read when they are wanted."""
        for row in stored:
            message = OpenMessage(row.id, row.topic, row.key, row.created, row.owner)
            self._add(Upload(message, self._host, None, row, fresh=False))

    def get(self, message_id: str) -> Upload | None:
        """The upload of a message, if there is one."""
        return self._uploads.get(message_id)

    async def begin(
        self, topic: str, key: str | None, size: int | None, owner: str | None, quota: int | None
    ) -> Upload | Receipt:
        """See ``Broker.begin``; the names have been checked."""
        await self._check_size(size)
        replaced: Replaced | None = None
        while True:
            accounts = await self._quotas.prepare(topic, owner, quota)
            if key is not None:
                stored = await self._clear(topic, key, owner)
                if isinstance(stored, Receipt):
                    return stored
                replaced = stored
            # From here on no await: two uploads that begin at once must not both find their key free.
            if await self._quotas.decided(accounts, size):
                break
        self._quotas.check_fits(topic, size)
        self._check_open()
        self._check_running()
        message = self._message(topic, key, owner)
        message.quota, message.lease = quota, self._quotas.lease(accounts, size)
        self._host.running.uploads += 1
        self._replace(message, replaced)
        return self._add(Upload(message, self._host, size))

    async def create(
        self,
        topic: str,
        key: str | None,
        length: int | None,
        metadata: Mapping[str, str],
        owner: str | None,
        quota: int | None,
    ) -> Upload | Receipt:
        """See ``Broker.create_upload``; the names have been checked."""
        await self._check_size(length)
        row = StoredUpload("", topic, key, length, metadata, owner, self._now(), self._expiry())
        replaced: Replaced | None = None
        while True:
            accounts = await self._quotas.prepare(topic, owner, quota)
            if key is not None:
                found = self._keys.get((topic, key))
                if found is not None and found.message.phase is Phase.OPEN and _same(found.kept, row):
                    return found
                stored = await self._clear(topic, key, owner)
                if isinstance(stored, Receipt):
                    return stored
                replaced = stored
            if await self._quotas.decided(accounts, length):
                break
        self._quotas.check_fits(topic, length)
        self._check_open()
        limit = self._settings.max_uploads
        if self._resumable >= limit:
            raise BrokerBusy(f"{self._resumable} uploads are begun and not ended, the limit; try later")
        message = self._message(topic, key, owner)
        message.quota, message.lease = quota, self._quotas.lease(accounts, length)
        row = StoredUpload(message.id, topic, key, length, metadata, owner, message.created, row.expires)
        self._replace(message, replaced)
        upload = self._add(Upload(message, self._host, None, row))
        try:
            await self._workers.finish(self._store.add_upload(row))
        except BaseException as problem:
            self._workers.start(upload.abort(f"it could not be noted: {problem}"))
            raise
        return upload

    async def receipt(self, topic: str, key: str) -> Receipt | None:
        """The receipt of a key; an upload of this key that somebody writes is waited for, whatever its end.

        One that is parked is not: nobody knows whether it will ever go on.
        """
        while (upload := self._keys.get((topic, key))) is not None and upload.written:
            await upload.message.moved.wait(upload.message.moved.version)
        while (listing := self._listing.get((topic, key))) is not None:
            await listing.wait()
        return await self._store.receipt(topic, key)

    # --- batches, whose messages are never open ------------------------------------------------------

    @contextmanager
    def counted(self) -> Generator[None]:
        """A batch, which counts as one upload. Raises BrokerBusy, BrokerUnavailable."""
        self._check_open()
        self._check_running()
        self._host.running.uploads += 1
        try:
            yield
        finally:
            self._host.running.uploads -= 1

    def is_open(self, topic: str, key: str | None) -> bool:
        """Whether an upload has this key."""
        return key is not None and (topic, key) in self._keys

    @contextmanager
    def listing(self, topic: str, keys: Sequence[str]) -> Generator[None]:
        """Messages with these keys are being listed: who asks for their receipts waits for that."""
        ended = asyncio.Event()
        names = [(topic, key) for key in keys]
        self._listing |= dict.fromkeys(names, ended)
        try:
            yield
        finally:
            for name in names:
                # Another batch with the same key may have come meanwhile; it ends after this one.
                if self._listing.get(name) is ended:
                    del self._listing[name]
            ended.set()

    def listed(self, info: MessageInfo, *, duplicate: bool) -> None:
        """A message of a batch is in the log, or was before."""
        self._received += info.bytes
        if duplicate:
            return
        self.sealed += 1
        self._measures.frames_in += info.frames
        self._measures.savings.count(info.pipeline, info.original_bytes, info.bytes)
        self._measures.seal.observe(self._clock.wall() - info.created.timestamp())
        self._quotas.stored(info.id, info.topic)

    async def sweep(self) -> None:
        """Remove what has expired, and let go of what parked uploads would need to go on at once."""
        now = self._clock.wall()
        for upload in list(self._uploads.values()):
            if upload.kept is not None and not upload.written and upload.kept.expires <= now:
                await upload.abort("nobody went on with it in time")
        for upload in list(self._warm.values()):
            upload.cool()
        self._warm.clear()

    async def close(self) -> None:
        """Abort what only one request can bring, and leave what can be resumed to the next process."""
        self._closing = True
        for upload in list(self._uploads.values()):
            await upload.shut()

    # --- inside --------------------------------------------------------------------------------------

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.wall(), UTC)

    def _expiry(self) -> float:
        return self._clock.wall() + self._settings.upload_expiry

    def _message(self, topic: str, key: str | None, owner: str | None) -> OpenMessage:
        return OpenMessage(new_id(self._clock.wall()), topic, key, self._now(), owner)

    def _add(self, upload: Upload) -> Upload:
        self.messages[upload.id] = upload.message
        self._uploads[upload.id] = upload
        self._resumable += upload.kept is not None
        if upload.key is not None:
            self._keys[upload.topic, upload.key] = upload
        return upload

    async def _check_size(self, size: int | None) -> None:
        limit = self._settings.max_message_bytes
        if size is not None and size > limit:
            raise LimitExceeded(f"a body of {size} bytes is over the {limit} that this broker accepts")
        if size is not None and size <= self._settings.inline_bytes:
            self._store.check_room(size)  # sooner done than handed to a thread
        else:
            await self._workers.run(self._store.check_room, size or 0)

    def _check_open(self) -> None:
        if self._closing:
            raise BrokerUnavailable("the broker shuts down; try again when it is back")

    def _check_running(self) -> None:
        running, limit = self._host.running, self._settings.max_open_messages
        if running.uploads >= limit:
            raise BrokerBusy(f"{running.uploads} messages are being published, the limit; try later")

    async def _clear(self, topic: str, key: str, owner: str | None) -> Receipt | Replaced | None:
        """The receipt of a key that is stored; else no upload has this key when this returns.

        What was stored under it and is damaged may be replaced. Raises Conflict if somebody else's upload
        has it.
        """
        while True:
            stored: Receipt | Replaced | None = await self._store.receipt(topic, key)
            if stored is not None:
                stored = await self._replaced(stored)
            upload = self._keys.get((topic, key))
            if isinstance(stored, Receipt) or upload is None:
                return stored
            if upload.message.phase is Phase.SEALING:
                await upload.message.decided()
            elif upload.message.owner != owner:
                raise Conflict(f"another publisher is sending a message to {topic} under this key")
            else:
                await upload.abort("a second upload of its idempotency key took its place", MessageReplaced)

    async def _replaced(self, receipt: Receipt) -> Receipt | Replaced:
        """What a new message with the same key replaces: a damaged one. Else the receipt."""
        if receipt.id not in self._store.damaged:
            return receipt
        return Replaced(receipt.id, await self._store.settled_by(receipt.id))

    def _replace(self, message: OpenMessage, replaced: Replaced | None) -> None:
        """Who has settled what is replaced is not handed this one."""
        if replaced is not None:
            message.replaces = replaced.id
            self._consumers.settled_before(message, replaced.settled_by)

    async def take_up(self) -> None:
        """Uploads that an earlier process has left go on replacing what they were begun to replace."""
        if not self._store.damaged:
            return
        for upload in list(self._uploads.values()):
            if upload.key is not None and (stored := await self._store.receipt(upload.topic, upload.key)):
                found = await self._replaced(stored)
                self._replace(upload.message, found if isinstance(found, Replaced) else None)

    def _parked(self, message_id: str) -> None:
        """An upload has no writer any more: it is kept at hand while there are few of them."""
        if (upload := self._uploads.get(message_id)) is None:
            return
        self._warm.pop(upload.id, None)
        self._warm[upload.id] = upload
        while len(self._warm) > self._settings.warm_uploads:
            self._warm.pop(next(iter(self._warm))).cool()

    def _changed(self, message: OpenMessage) -> None:
        """An upload tells that its envelope is known, or its end."""
        if not message.ended:
            self._consumers.opened(message)
            return
        del self.messages[message.id]
        self._warm.pop(message.id, None)
        upload = self._uploads.pop(message.id)
        if message.key is not None and self._keys.get((message.topic, message.key)) is upload:
            del self._keys[message.topic, message.key]
        if upload.kept is None:
            self._host.running.uploads -= 1
        else:
            self._resumable -= 1
        self._received += upload.received
        self._quotas.ended(message)
        if message.phase is Phase.ABORTED:
            self.aborted += 1
            self._consumers.aborted(message.id)
        else:
            self.sealed += 1
            info = message.info
            self._measures.frames_in += info.frames
            self._measures.savings.count(info.pipeline, info.original_bytes, info.bytes)
            self._measures.seal.observe(self._clock.wall() - message.created.timestamp())
            self._consumers.sealed(message, message.info.seq or 0)


def _same(kept: StoredUpload | None, wanted: StoredUpload) -> bool:
    """Whether what is to be created is there, begun by the same owner from the same source."""
    return (
        kept is not None
        and SOURCE in wanted.metadata
        and (kept.length, kept.owner, dict(kept.metadata))
        == (wanted.length, wanted.owner, dict(wanted.metadata))
    )
