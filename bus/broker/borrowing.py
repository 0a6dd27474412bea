"""Uploads whose frames this broker stores, while another one decides on them.

The publisher's connection ends here. What it sends is checked as by the broker that leads, and stored under
the epoch for which it was lent. Whoever leads is told how far that is; so what is told is stored, and can be
read by everybody.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from dataclasses import replace

from tensorbus.bus.stores.base import Part, Store
from tensorbus.bus.stores.shared import BorrowedFrames, SharedStore
from tensorbus.errors import ChunkMismatch, StorageError, TensorbusError

from .inflow import Digest, Inflow, Running
from .intake import Intake, Reached
from .lent import Loan, Progress, tidy
from .settings import BrokerSettings
from .workers import Workers

_log = logging.getLogger("tensorbus.broker")

_WARM = 30.0
"""Seconds for which an upload between two turns is kept at hand."""


class Borrowing:
    """All uploads that were lent to this broker."""

    def __init__(self, store: Store, settings: BrokerSettings, workers: Workers) -> None:
        self._store = store
        self._settings = settings
        self._workers = workers
        self._running = Running()
        self._warm: OrderedDict[str, Borrowed] = OrderedDict()

    async def take_up(self, loan: Loan) -> Borrowed:
        """Begin to write, or go on. Raises StorageError."""
        if not isinstance(self._store, SharedStore):
            raise StorageError("the store of this broker is its own")
        found = self._warm.pop(loan.id, None)
        if found is not None and found.renew(loan):
            return found
        if found is not None:
            found.close()
        frames = self._store.borrow(loan.epoch)
        if loan.fresh:
            intake = Intake(frames, loan.id, loan.limit, 0)
        else:
            intake = await self._workers.run(Intake.reopened, frames, loan.id, loan.limit, loan.offset)
        return Borrowed(loan, intake, frames, self._settings, self._workers, self._running)

    async def end(self, upload: Borrowed) -> Progress:
        """Nothing more comes in this turn: where the next writer goes on, and whether that is known."""
        progress = await upload.end()
        if not progress.done or not upload.goes_on:
            upload.close()
            return progress
        self._warm[upload.id] = upload
        while len(self._warm) > self._settings.warm_uploads:
            self._warm.popitem(last=False)[1].close()
        asyncio.get_running_loop().call_later(_WARM, self._cool, upload, upload.epoch)
        return progress

    def _cool(self, upload: Borrowed, epoch: int) -> None:
        if self._warm.get(upload.id) is upload and upload.epoch == epoch:
            del self._warm[upload.id]
            upload.close()

    def close(self) -> None:
        """Let go of all that nobody writes to."""
        for upload in self._warm.values():
            upload.close()
        self._warm.clear()


class Borrowed:
    """Checks and stores the frames of one upload that was lent, with constant memory. Made by `Borrowing`."""

    def __init__(
        self,
        loan: Loan,
        intake: Intake,
        frames: BorrowedFrames,
        settings: BrokerSettings,
        workers: Workers,
        running: Running,
    ) -> None:
        self._loan = loan
        self._intake = intake
        self._frames = frames
        self._settings = settings
        self._workers = workers
        self._running = running
        self._at_work = asyncio.Lock()  # on the intake, other than to write
        self._told: Reached | None = None
        self._told_size = 0
        self._told_envelope = False
        self._inflow = self._new_inflow()

    @property
    def id(self) -> str:
        """The message's id."""
        return self._loan.id

    @property
    def epoch(self) -> int:
        """Of the last loan."""
        return self._loan.epoch

    @property
    def offset(self) -> int:
        """Bytes that are kept."""
        return self._intake.size - self._intake.held

    @property
    def goes_on(self) -> bool:
        """Whether there may be another turn: what comes in one request has one only."""
        return not self._loan.fresh and not self._intake.complete

    def renew(self, loan: Loan) -> bool:
        """Go on from the last turn, if nobody else has written since; False: begin anew."""
        if loan.after != self._loan.epoch or loan.offset != self.offset:
            return False
        self._loan = loan
        self._frames.renew(loan.epoch)
        self._told, self._told_envelope = None, False
        self._inflow = self._new_inflow()
        return True

    def _new_inflow(self) -> Inflow:
        return Inflow(
            self._intake,
            self._settings,
            self._workers,
            self._running,
            shown=_nothing,
            taken=_no_hurry,
            failed=_ignored,
        )

    # --- bytes come: as to an `Upload` ---------------------------------------------------------------

    async def write(self, chunk: Part) -> None:
        """Take the next bytes; see `Upload.write`."""
        await self._inflow.write(chunk)

    def take(self, view: memoryview) -> None:
        """As ``write``, in the calling thread; see `Upload.take`."""
        self._inflow.take(view)

    async def pace(self) -> None:
        """To be awaited after ``take``; see `Upload.pace`."""
        await self._inflow.pace()

    async def flush(self) -> None:
        """Wait until all that was written is verified and kept."""
        await self._inflow.flush()

    def hold(self, digest: Digest) -> None:
        """What is written from now on counts only if ``verify`` says so."""
        self._inflow.digest = digest

    async def verify(self, expected: bytes) -> None:
        """Compare what was written since ``hold`` with its checksum; see `Upload.verify`.

        Raises ChunkMismatch, and as ``write``.
        """
        await self.flush()
        digest = self._inflow.digest
        assert digest is not None
        good = digest.digest() == expected
        async with self._at_work:
            self._inflow.digest = None
            try:
                await self._workers.run(self._intake.release if good else self._intake.recover)
            except Exception as problem:
                self._inflow.fail(problem)
                raise
        if not good:
            raise ChunkMismatch("the chunk does not match its Upload-Checksum and was dropped; send it again")

    # --- what is told --------------------------------------------------------------------------------

    async def progress(self, *, partial: bool) -> Progress | None:
        """Store what has come and is good; how far that is, None if there is nothing to tell.

        What is no whole frame yet is worth that only if ``partial``. Raises StorageError.
        """
        async with self._at_work:
            size, reached = self._intake.size, self._intake.reached
            news = reached != self._told or (partial and size != self._told_size)
            if self._inflow.digest is not None or not news:
                return None
            await self._workers.sync(self._intake.sync)
            return self._tell(Progress(max(size, reached.boundary), reached))

    async def end(self) -> Progress:
        """Nothing more is written in this turn. Store what has come, back to where it is good."""
        await self._inflow.quiet()
        async with self._at_work:
            self._told_envelope = False  # what was told last may not have been sent any more
            intake, failed = self._intake, self._inflow.failure is not None
            if failed and self._loan.fresh:
                return self._tell(Progress(intake.reached.boundary, intake.reached))  # nobody goes on with it
            try:
                await self._workers.run(tidy, intake, failed)
            except TensorbusError as problem:
                _log.warning("upload %s: what has come could not be stored: %s", self.id, problem)
                return self._tell(Progress(intake.reached.boundary, intake.reached))
            totals = intake.finish() if intake.complete else None
            return self._tell(Progress(intake.size, intake.reached, totals=totals, done=True))

    def _tell(self, progress: Progress) -> Progress:
        self._told, self._told_size = progress.reached, progress.size
        envelope = self._intake.envelope
        if self._told_envelope or envelope is None:
            return progress
        self._told_envelope = True
        return replace(progress, envelope=envelope)

    def close(self) -> None:
        """What is not stored yet never will be."""
        self._intake.close()
        self._frames.forget()


def _nothing() -> None:
    """Whoever wants to know how far it is asks."""


def _no_hurry() -> bool:
    return False


def _ignored(_problem: Exception) -> None:
    """Whoever writes gets it."""
