"""A message on its way in.

Strategy. ``write`` only puts chunks into a batch. While there is a batch, one worker thread at a time takes
all of it, checks the frames in it, and appends it to the file; meanwhile the next batch gathers. So a slow
upload is verified and visible at once, a fast one moves in large steps, and either holds two batches at most:
when the second is full, ``write`` waits. When all uploads together gather too much, each waits for its own
bytes, so that the broker's memory does not grow with their number.

While the bytes arrive, the file is synced in steps by another thread, one step at a time, so that the
acknowledgement in the end waits for the last few megabytes only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Self

from tensorbus.bus.clock import Clock
from tensorbus.bus.messages import MessageInfo, Receipt
from tensorbus.bus.stores.base import FrameFile, Part, Store, StoredDelivery
from tensorbus.errors import LimitExceeded, MessageAborted, TensorbusError
from tensorbus.streaming.frames import FrameParser, Kind
from tensorbus.streaming.sequence import MessageChecker

from .open_message import OpenMessage, Phase
from .settings import BrokerSettings
from .wakeup import Wakeup
from .workers import Workers

_CHUNK_OVERHEAD = 100
"""Bytes that a chunk costs beside its content, so that a batch of tiny chunks stays small as well."""


@dataclass(slots=True)
class Gathered:
    """Bytes of all uploads that are not in the store yet."""

    bytes: int = 0


@dataclass(frozen=True, slots=True)
class UploadHost:
    """What an upload needs of the broker.

    Attributes:
        changed: called when the message's envelope is known, when it was sealed and when it was aborted.
        followers: the deliveries of a message that were handed out while it was open.
        gathered: shared by all uploads.
    """

    store: Store
    settings: BrokerSettings
    workers: Workers
    clock: Clock
    changed: Callable[[OpenMessage], None]
    followers: Callable[[OpenMessage], Sequence[StoredDelivery]]
    gathered: Gathered = field(default_factory=Gathered)


class Upload:
    """Checks every frame of one message and appends it to the store, with constant memory.

    Made by ``Broker.begin``, used by one task. Leaving it as a context manager unsealed aborts it.
    """

    def __init__(self, message: OpenMessage, host: UploadHost) -> None:
        self.message = message
        self._host = host
        self._workers = host.workers
        self._parser = FrameParser(keep_payload=False)
        self._checker = MessageChecker()
        self._file: FrameFile | None = None
        self._close_at: int | None = None
        self._received = 0
        self._written = 0
        self._unsynced = 0
        self._batch: list[Part] = []
        self._batch_cost = 0
        self._progress = Wakeup()
        self._drain_task: asyncio.Task[None] | None = None
        self._sync_task: asyncio.Task[None] | None = None
        self._cleanup_task: asyncio.Task[None] | None = None
        self._failure: Exception | None = None

    @property
    def id(self) -> str:
        """The message's id."""
        return self.message.id

    @property
    def topic(self) -> str:
        """The message's topic."""
        return self.message.topic

    @property
    def key(self) -> str | None:
        """The message's idempotency key."""
        return self.message.key

    @property
    def info(self) -> MessageInfo:
        """The message as far as it has been verified."""
        return self.message.info

    @property
    def received(self) -> int:
        """Bytes taken by ``write`` so far."""
        return self._received

    @property
    def aborted(self) -> bool:
        """Whether the upload was given up: by ``abort``, an error, its deletion, or another of its key."""
        return self._failure is not None

    async def write(self, chunk: Part) -> None:
        """Take the next bytes of the body, cut anywhere; waits while the store is behind (backpressure).

        ``bytes`` are kept until they are written. A bytearray or memoryview (of single bytes) may be reused
        as soon as this returns. An error belongs to these or to earlier bytes; the upload is then aborted.

        Raises:
            FrameError (and its kinds), InvalidName, InvalidRequest, LimitExceeded: it is no valid message.
            StorageFull, StorageError: the store cannot take it.
            MessageAborted: the upload was replaced or deleted meanwhile.
        """
        self._check()
        if not chunk:
            return
        limit = self._host.settings.max_message_bytes
        if self._received + len(chunk) > limit:
            self._fail(LimitExceeded(f"the body is longer than the {limit} bytes that this broker accepts"))
            self._check()
        self._received += len(chunk)
        end = self._received
        self._host.gathered.bytes += len(chunk)
        self._batch.append(chunk)
        self._batch_cost += len(chunk) + _CHUNK_OVERHEAD
        if self._drain_task is None or self._drain_task.done():
            self._drain_task = self._workers.start(self._drain())
        try:
            if isinstance(chunk, bytes) and self._host.gathered.bytes <= self._host.settings.gather_bytes:
                await self._until(lambda: self._batch_cost < self._host.settings.batch_bytes)
            else:
                await self._until(lambda: self._written >= end)
        except asyncio.CancelledError:
            # The caller may now reuse a buffer that a thread still reads.
            self._fail(MessageAborted(f"message {self.id}: its publisher stopped in the midst of a write"))
            raise
        self._check()

    async def seal(self) -> Receipt:
        """The body is complete: acknowledged when this returns.

        It is carried through even if the caller is cancelled. If the key was stored by another upload
        meanwhile, this is that one's receipt, marked duplicate.
        Raises as ``write``, and TruncatedFrames.
        """
        return await self._workers.finish(self._seal())

    async def abort(self, reason: str) -> None:
        """Give the message up; followers get MessageAborted. Does nothing once it is being sealed."""
        if self.message.phase is Phase.OPEN:
            self._fail(MessageAborted(f"message {self.id} was aborted: {reason}"))
        if self._cleanup_task is not None:
            await asyncio.shield(self._cleanup_task)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.abort("its publisher stopped before the end of the message")

    # --- moving bytes --------------------------------------------------------------------------------

    async def _drain(self) -> None:
        try:
            while self._batch and not self.aborted:
                batch, self._batch, self._batch_cost = self._batch, [], 0
                self._progress.notify()
                size = sum(map(len, batch))
                try:
                    await self._workers.run(self._check_and_append, batch)
                finally:
                    self._host.gathered.bytes -= size
                self._written += size
                if not self.aborted:
                    self._show()
                    await self._sync_in_steps(size)
                self._progress.notify()
        except Exception as problem:  # whatever it is, it belongs to the publisher
            self._fail(problem)

    def _check_and_append(self, batch: Sequence[Part]) -> None:
        """In a worker thread; the only place that touches parser, checker and file while the body arrives."""
        for chunk in batch:
            for frame in self._parser.feed(chunk):
                self._checker.accept(frame)
                if frame.kind == Kind.OPEN:
                    self._check_promise(self._checker.envelope.wire_bytes or 0)
                elif frame.kind == Kind.CLOSE:
                    self._close_at = frame.offset
        if self._file is None:
            self._file = self._host.store.create(self.id)
        self._file.append(batch)

    def _check_promise(self, promised: int) -> None:
        """A body that is announced too large is refused before it comes."""
        limit = self._host.settings.max_message_bytes
        if promised > limit:
            raise LimitExceeded(f"the message announces {promised} bytes; this broker accepts {limit}")
        self._host.store.check_room(promised)

    def _show(self) -> None:
        """Let readers have what has been verified and written."""
        message = self.message
        message.visible = self._parser.boundary if self._close_at is None else self._close_at
        message.frames = self._checker.frames
        message.moved.notify()
        if message.envelope is None and self._checker.opened:
            message.envelope = self._checker.envelope
            self._host.changed(message)

    async def _sync_in_steps(self, written: int) -> None:
        self._unsynced += written
        if self._unsynced >= self._host.settings.sync_bytes and self._file is not None:
            await self._synced()
            self._unsynced = 0
            self._sync_task = self._workers.start(self._workers.sync(self._file.sync))

    async def _synced(self) -> None:
        if self._sync_task is not None:
            await self._sync_task
            self._sync_task = None

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not self.aborted and not condition():
            await self._progress.wait(self._progress.version)

    # --- the end -------------------------------------------------------------------------------------

    async def _seal(self) -> Receipt:
        await self._until(lambda: self._written == self._received)
        if self._drain_task is not None:
            await self._drain_task
        self._check()
        try:
            self._parser.finish()
            self._checker.finish()
            assert self._file is not None
            await self._synced()
            self._sync_task = self._workers.start(self._workers.sync(self._file.sync))
            await self._synced()
            self._check()
            # From here to the outcome the deliveries of this message do not change; so no await in between.
            self.message.phase = Phase.SEALING
            info = self._whole()
            receipt = await self._host.store.seal(info, self._host.followers(self.message))
        except TensorbusError as problem:
            self._fail(problem)
            await self.abort("it could not be sealed")
            raise
        if receipt.duplicate:
            self._fail(MessageAborted(f"message {self.id} was dropped: {receipt.id} has its key"))
            await self.abort("its key is stored")
            return receipt
        self._file.close()
        self.message.seal(info, receipt.seq)
        self._host.changed(self.message)
        return receipt

    def _whole(self) -> MessageInfo:
        totals = self._checker.totals
        return replace(
            self.message.info,
            state="sealed",
            bytes=self._received,
            frames=totals.frames,
            items=totals.items,
            original_bytes=totals.original_bytes,
            wire_bytes=self._received,
            digest=totals.digest.hex(),
            sealed=datetime.fromtimestamp(self._host.clock.wall(), UTC),
        )

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _fail(self, problem: Exception) -> None:
        """Give up, whatever phase this is in; the file goes as soon as no thread uses it."""
        if self._failure is None:
            self._failure = problem
            self._host.gathered.bytes -= sum(map(len, self._batch))
            self._batch = []
            self.message.abort(str(problem))
            self._progress.notify()
            self._host.changed(self.message)
            self._cleanup_task = self._workers.start(self._clean_up())

    async def _clean_up(self) -> None:
        tasks = [task for task in (self._drain_task, self._sync_task) if task is not None]
        if tasks:
            await asyncio.wait(tasks)
        if self._file is not None:
            await self._workers.run(self._file.discard)
