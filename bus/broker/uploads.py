"""A message on its way in.

Two kinds. What comes in one request is given up when that request ends. A resumable upload outlives its
connections, and the broker: it has a row in the store, one writer at a time, and is parked in between, when
nothing of it is in memory but this object. Its file says how far it is: after a crash up to the last frame in
it that is whole.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Self

from tensorbus.bus.messages import MessageInfo, Receipt
from tensorbus.bus.stores.base import Part, StoredUpload
from tensorbus.bus.stores.shared import SharedStore
from tensorbus.errors import (
    BrokerBusy,
    BrokerUnavailable,
    ChunkMismatch,
    Conflict,
    MessageAborted,
    StorageError,
    StorageFull,
    StoreUnavailable,
    TensorbusError,
)

from .covering import Covering
from .inflow import Digest, Inflow
from .intake import Intake
from .lent import LentIntake, Loan, Progress, tidy
from .open_message import OpenMessage, Phase
from .turns import Turns
from .upload_host import UploadHost

_log = logging.getLogger("tensorbus.broker")

_NOTED_EARLIER = 1 / 24
"""Part of its life by which the end of an upload is put off before that is noted in the store."""


class Upload:
    """Checks every frame of one message and puts it into the store, with constant memory.

    Made by ``Broker.begin`` for one request, which uses it as a context manager and aborts it by leaving it
    unsealed; or by ``Broker.create_upload``, to be written in turns.

    Args:
        size: bytes of the body, if they are known.
        kept: the row of a resumable upload.
        fresh: False for an upload that an earlier process has left.
    """

    def __init__(
        self,
        message: OpenMessage,
        host: UploadHost,
        size: int | None,
        kept: StoredUpload | None = None,
        *,
        fresh: bool = True,
    ) -> None:
        self.message = message
        self.length = size
        self._host = host
        self._workers = host.workers
        self._row = kept
        self._noted = 0.0 if kept is None else kept.expires
        self._turns = Turns()
        self._at_work = asyncio.Lock()  # on the intake, other than to write
        self._fresh = fresh
        self._offset = 0 if fresh else None
        self._intake: Intake | LentIntake | None = None
        self._inflow: Inflow | None = None
        self._received = 0
        self._failure: Exception | None = None
        self._sealing: asyncio.Task[Receipt] | None = None
        self._covering = Covering(message, host.workers, host.look_up)
        self._cleanup_task: asyncio.Task[None] | None = None
        if kept is None:
            self._intake = self._new_intake(size)
            self._inflow = self._new_inflow(self._intake)

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
        """Bytes that were brought so far, in this process, whatever became of them."""
        return self._received + (self._inflow.received if self._inflow else 0)

    @property
    def aborted(self) -> bool:
        """Whether the upload was given up: by ``abort``, an error, its deletion, or another of its key."""
        return self._failure is not None

    @property
    def kept(self) -> StoredUpload | None:
        """The row of a resumable upload."""
        return self._row

    @property
    def offset(self) -> int | None:
        """Bytes that are kept of a resumable upload; None after a restart, before ``touch``."""
        if self._intake is not None:
            return self._intake.size - self._intake.held
        return self._offset

    @property
    def boundary(self) -> int:
        """End of the last verified frame."""
        return self.message.boundary

    @property
    def complete(self) -> bool:
        """Whether the last frame has come, and all that is left to do is to seal the message."""
        return self._intake is not None and self._intake.complete

    @property
    def written(self) -> bool:
        """Whether somebody writes to it, or is about to."""
        return self._row is None or self._turns.taken

    def check_alive(self) -> None:
        """Raise why it was given up, if it was."""
        self._check()

    # --- what the writer does ------------------------------------------------------------------------

    async def write(self, chunk: Part) -> None:
        """Take the next bytes of the body, cut anywhere; waits while the store is behind (backpressure).

        ``bytes`` are kept until they are written. A bytearray or memoryview (of single bytes) may be reused
        as soon as this returns, but not if it is cancelled. An error belongs to these or to earlier bytes; an
        upload of one request is then aborted.

        Raises:
            FrameError (and its kinds), InvalidName, InvalidRequest, LimitExceeded: it is no valid message.
            StorageFull, StorageError: the store cannot take it.
            MessageAborted: the upload was replaced or deleted meanwhile.
        """
        self._check()
        await self._writer().write(chunk)
        await self._looked()

    def take(self, view: memoryview) -> None:
        """As ``write``, in the calling thread, which blocks: `Inflow.take`."""
        self._check()
        self._writer().take(view)

    async def pace(self) -> None:
        """To be awaited after ``take``: waits while the disk is behind. Raises as ``write``."""
        self._check()
        await self._writer().pace()
        await self._looked()

    async def flush(self) -> None:
        """Wait until all that was written is verified and kept, so that ``offset`` counts it."""
        self._check()
        await self._writer().flush()
        await self._looked()

    def hold(self, digest: Digest) -> None:
        """What is written from now on counts only if ``verify`` says so."""
        self._writer().digest = digest

    async def verify(self, expected: bytes) -> None:
        """Compare what was written since ``hold`` with its checksum, and only then look at it.

        Raises:
            ChunkMismatch: it is another; all of it was dropped.
            and as ``write``.
        """
        inflow = self._writer()
        await self.flush()
        digest, inflow.digest = inflow.digest, None
        assert digest is not None
        good = digest.digest() == expected
        async with self._at_work:
            self._check()
            try:
                await self._workers.run(inflow.intake.release if good else inflow.intake.recover)
            except Exception as problem:
                inflow.fail(problem)
                raise
        if not good:
            raise ChunkMismatch("the chunk does not match its Upload-Checksum and was dropped; send it again")
        self._show()

    async def seal(self) -> Receipt:
        """The body is complete: acknowledged when this returns.

        It is carried through even if the caller is cancelled. If the key was stored by another upload
        meanwhile, this is that one's receipt, marked duplicate.
        Raises as ``write``, and TruncatedFrames.
        """
        self._sealing = self._workers.start(self._seal())
        return await asyncio.shield(self._sealing)

    async def abort(self, reason: str, problem: type[MessageAborted] = MessageAborted) -> None:
        """Give the message up: its writer gets ``problem``, followers MessageAborted. Does nothing once it is
        being sealed."""
        if self.message.phase is Phase.OPEN:
            self._fail(problem(f"message {self.id} was aborted: {reason}"))
        if self._cleanup_task is not None:
            await asyncio.shield(self._cleanup_task)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.abort("its publisher stopped before the end of the message")

    # --- frames that come in at another broker -------------------------------------------------------

    async def lend(self) -> Loan:
        """Have another broker write in this turn, or request. Raises StorageError."""
        self._check()
        intake, store = self._intake, self._host.store
        assert intake is not None, "lend a resumable upload in a turn"
        if not isinstance(store, SharedStore):
            raise StorageError("the store of this broker is its own")
        epoch = store.lend(self.id)
        before = intake.epoch if isinstance(intake, LentIntake) else 0
        progress = Progress(intake.size, intake.reached, intake.envelope)
        intake.close()

        def returned(drop: bool) -> None:
            store.take_back(self.id, drop=drop)

        self._intake = LentIntake(progress, epoch, returned)
        self._inflow = self._new_inflow(self._intake)
        length = self.length if self._row is None else self._row.length
        limit = self._host.settings.max_message_bytes
        return Loan(self.id, epoch, before, progress.size, self._row is None, length, limit)

    async def hear(self, progress: Progress) -> None:
        """The other broker tells how far it is. Raises as ``write``: it need not go on."""
        if isinstance(self._intake, LentIntake):
            self._intake.hear(progress)
        self._check()
        self._writer().check()
        self._grown()
        await self._looked()

    async def come_home(self) -> Intake:
        """Its frames come in here, wherever they came in before. Raises StorageError."""
        async with self._at_work:
            intake = self._intake
            assert intake is not None
            if isinstance(intake, Intake):
                return intake
            intake.close()
            self._intake, self._offset = None, intake.size
            limit = self._host.settings.max_message_bytes
            home = await self._workers.run(Intake.reopened, self._host.store, self.id, limit, self._offset)
            self._intake, self._inflow = home, self._new_inflow(home)
            return home

    # --- a resumable upload --------------------------------------------------------------------------

    @asynccontextmanager
    async def turn(self, give_way: Callable[[], None]) -> AsyncGenerator[None]:
        """Be its writer as long as the block runs; then it is parked. See `Turns.turn`.

        Inside, the message may be found sealed by the writer before. Behind the block, all that was written
        and is good is kept.

        Raises:
            Conflict: a newer writer takes the turn.
            BrokerBusy: too many uploads have a writer.
            MessageAborted: it was given up. StorageError: what is kept of it cannot be read.
        """
        try:
            async with self._turns.turn(give_way):
                self._check()
                async with self._counted():
                    await self.touch()
                    self._check()
                    if not self.message.ended:
                        self._inflow = self._new_inflow(self._intake)
                    try:
                        if self._inflow is not None:
                            # Now, too: after a crash in this turn, what it brought is not found expired.
                            await self._put_off()
                            self._check()
                        yield
                    finally:
                        await self._workers.finish(self._park())
        finally:
            # Who waits for its end looks whether there still is a writer.
            self.message.moved.notify()

    @asynccontextmanager
    async def _counted(self) -> AsyncGenerator[None]:
        """Among those that have a writer, as long as the block runs. Raises BrokerBusy."""
        running, limit = self._host.running, self._host.settings.max_open_messages
        if running.uploads >= limit:
            raise BrokerBusy(f"{running.uploads} messages are being published, the limit; try later")
        running.uploads += 1
        try:
            yield
        finally:
            running.uploads -= 1

    async def touch(self) -> None:
        """Find out how far it is, if a restart or a pause has left that to be read from its file."""
        async with self._at_work:
            if self._intake is not None or self.message.ended:
                return
            if self._fresh and self._row is not None:
                self._intake = self._new_intake(self._row.length)
                self._fresh = False
            else:
                limit = self._host.settings.max_message_bytes
                self._intake = await self._workers.run(
                    Intake.reopened, self._host.store, self.id, limit, self._offset
                )
                self._offset = self._intake.size
            if self.message.ended:
                self._intake.close()
                return
            self._show()
        if not self.written:
            self._host.parked(self.id)

    def cool(self) -> None:
        """Let go of what a parked upload would need to go on at once: it can be read again."""
        if self.written or self._at_work.locked() or self.message.phase is not Phase.OPEN:
            return
        if isinstance(self._intake, Intake):
            self._offset = self._intake.size
            self._intake.close()
            self._intake = None

    async def set_length(self, length: int) -> None:
        """Say for good how long a body is whose length was deferred."""
        row = self._row
        assert row is not None
        if row.length is None:
            self._row = replace(row, length=length)
            await self._host.store.touch_upload(self.id, row.expires, length)

    async def shut(self) -> None:
        """The broker closes: nothing more is written, what is kept stays."""
        if self._row is None:
            await self.abort("the broker shuts down")
            return
        if self.message.phase is Phase.OPEN:
            self._failure = BrokerUnavailable(
                f"the broker shuts down; go on with upload {self.id} when it is back"
            )
            if self._inflow is not None:
                self._inflow.fail(self._failure)
            self._turns.interrupt()
        with suppress(Conflict):
            async with self._turns.turn(lambda: None):
                pass
        async with self._at_work:
            if self._intake is not None:
                self._intake.close()

    async def _park(self) -> None:
        await self._seal_complete()
        inflow, self._inflow = self._inflow, None
        if inflow is None:
            return
        self._received += inflow.received
        await inflow.quiet()
        await self._covering.looked()
        passing = isinstance(inflow.failure, StorageFull | StoreUnavailable)
        if isinstance(inflow.failure, StorageError) and not passing:
            # What the disk did not take once cannot be trusted to be there later.
            self._fail(inflow.failure)
        async with self._at_work:
            if self.message.ended or self._intake is None:
                return
            try:
                await self._workers.run(tidy, self._intake, inflow.failure is not None)
                self._show()
                self._offset = self._intake.size
            except TensorbusError as problem:
                _log.warning("upload %s: %s; it will be verified before it goes on", self.id, problem)
                self._intake.close()
                self._intake = None
                self._offset = None
        await self._put_off()
        self._host.parked(self.id)

    async def _seal_complete(self) -> None:
        """If all has come it is acknowledged, whether or not the writer stayed for the answer: who asks then
        is told that all is there, and relies on it."""
        sealing, self._sealing = self._sealing, None
        inflow, intake = self._inflow, self._intake
        if sealing is None and inflow is not None and intake is not None:
            await inflow.quiet()
            known = self._row is not None and self._row.length in (None, intake.size)
            if intake.complete and known and inflow.failure is None and not self.message.ended:
                sealing = self._workers.start(self._seal())
        if sealing is not None:
            await asyncio.wait([sealing])

    async def _put_off(self) -> None:
        """It has had a writer: it expires later."""
        settings, row = self._host.settings, self._row
        assert row is not None
        expires = self._host.clock.wall() + settings.upload_expiry
        self._row = replace(row, expires=expires)
        if expires - self._noted >= settings.upload_expiry * _NOTED_EARLIER:
            try:
                await self._host.store.touch_upload(self.id, expires, row.length)
                self._noted = expires
            except TensorbusError as problem:
                _log.warning("upload %s: its time could not be put off: %s", self.id, problem)

    # --- moving bytes --------------------------------------------------------------------------------

    def _new_intake(self, size: int | None) -> Intake:
        settings = self._host.settings
        small = size is not None and size <= settings.inline_bytes
        return Intake(
            self._host.store,
            self.id,
            settings.max_message_bytes,
            settings.inline_bytes if small else 0,
        )

    def _new_inflow(self, intake: Intake | LentIntake | None) -> Inflow:
        assert intake is not None
        return Inflow(
            intake,
            self._host.settings,
            self._workers,
            self._host.running,
            shown=self._grown,
            taken=self._taken,
            failed=self._write_failed,
        )

    def _writer(self) -> Inflow:
        assert self._inflow is not None, "write to a resumable upload in a turn"
        return self._inflow

    def _taken(self) -> bool:
        """In a thread that takes: show followers in other threads what it has taken.

        Returns whether the event loop has to hear of it at once.
        """
        message, intake = self.message, self._intake
        if intake is not None and intake.shown:
            message.grow(intake.visible)
        return message.envelope is None or message.lease is not None or message.moved.awaited

    def _grown(self) -> None:
        """More has come: there must be room for it."""
        if self._inflow is not None:
            self._covering.cover(self._inflow, self._show)

    async def _looked(self) -> None:
        """Wait until it is known whether there is room for all that has come. Raises QuotaExceeded."""
        if await self._covering.looked():
            self._check()
            self._writer().check()

    def _show(self) -> None:
        """Let readers have what has been verified and written."""
        message, intake = self.message, self._intake
        if intake is None or not intake.shown or message.ended:
            return
        reached = intake.reached
        message.boundary = reached.boundary
        message.grow(reached.visible)
        message.frames = reached.frames
        message.moved.notify()
        if message.envelope is None and intake.envelope is not None:
            message.envelope = intake.envelope
            self._host.changed(message)

    def _write_failed(self, problem: Exception) -> None:
        if self._row is None:
            self._fail(problem)

    # --- the end -------------------------------------------------------------------------------------

    async def _seal(self) -> Receipt:
        inflow = self._writer()
        intake = inflow.intake
        try:
            await inflow.flush()
            await self._looked()
            self._check()
            totals = intake.finish()
            body = intake.body()
            if body is None:
                await inflow.sync()
            self._check()
        except TensorbusError as problem:
            self._fail(problem)
            await self.abort("it could not be sealed")
            raise
        # From here to the outcome the deliveries of this message do not change; so no await in between.
        self.message.phase = Phase.SEALING
        if self.message.lease is not None:
            self.message.lease.listing()
        self.message.envelope = self.message.envelope or intake.envelope
        now = datetime.fromtimestamp(self._host.clock.wall(), UTC)
        info = self.message.whole(intake.size, totals, now)
        try:
            receipt = await self._host.store.seal(
                info, self._host.followers(self.message), body, self._host.terms(self.message)
            )
        except TensorbusError as problem:
            await self._unsealed(inflow, problem)
            raise
        if receipt.duplicate:
            self._fail(MessageAborted(f"message {self.id} was dropped: {receipt.id} has its key"))
            await self.abort("its key is stored")
            return receipt
        intake.close()
        self._received += inflow.received
        self._inflow = self._intake = None
        self._offset = info.bytes
        self.message.seal(info, receipt.seq)
        self._host.changed(self.message)
        return receipt

    async def _unsealed(self, inflow: Inflow, problem: TensorbusError) -> None:
        """The store refused: a resumable upload is as it was before its last frame, and can come again."""
        if self._row is None:
            self._fail(problem)
            await self.abort("it could not be sealed")
            return
        inflow.fail(problem)
        # Where that fails too, it is verified from its file before anybody goes on with it.
        with suppress(TensorbusError):
            intake = inflow.intake if isinstance(inflow.intake, Intake) else await self.come_home()
            await self._workers.run(intake.cut, intake.visible)
        self.message.phase = Phase.OPEN
        if self.message.lease is not None:
            self.message.lease.not_listed()
        self.message.moved.notify()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _fail(self, problem: Exception) -> None:
        """Give up, whatever phase this is in; what is kept goes as soon as no thread uses it."""
        if self._failure is None:
            self._failure = problem
            self.message.abort(str(problem))
            if self._inflow is not None:
                self._inflow.fail(problem)
            self._turns.interrupt()
            self._host.changed(self.message)
            self._cleanup_task = self._workers.start(self._clean_up(self._inflow))

    async def _clean_up(self, inflow: Inflow | None) -> None:
        if inflow is not None:
            await inflow.quiet()
        async with self._at_work:
            intake, self._intake = self._intake, None
        if self._row is not None:
            # The row first: a crash in between leaves a file without a row, which recovery removes.
            if intake is not None:
                intake.close()
            await self._host.store.delete_upload(self.id)
        elif intake is not None:
            await self._workers.run(intake.discard)
