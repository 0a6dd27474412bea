"""A scrub: everything that is stored is read and verified, before somebody needs it.

Strategy. One message after the other, in the order of the log, each window of a file in a worker thread;
between two windows it sleeps as long as the rate demands. Pages of the files are dropped from the page cache
before they are read, so that the disk is asked and not the memory, and afterwards, so that what is in use is
not pushed out.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import UTC, datetime

from tensorbus.bus.clock import Clock
from tensorbus.bus.damage import ScrubReport, ScrubState
from tensorbus.bus.messages import MessageInfo
from tensorbus.bus.stores.base import RemoteFrames, Store
from tensorbus.errors import Conflict, StoreDamaged, TensorbusError

from .damaged import Damaged
from .frame_source import FrameSource
from .verification import Verification, check_size
from .workers import Workers

_log = logging.getLogger("tensorbus.broker")

_PAGE = 100
_MOST_NAMED = 1000
_BURST = 4 << 20
"""Bytes between two looks at the rate."""


class Scrubber:
    """Verifies the store of a broker on request, one time after the other."""

    def __init__(self, store: Store, damaged: Damaged, workers: Workers, clock: Clock) -> None:
        self._store = store
        self._damaged = damaged
        self._workers = workers
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self.report = ScrubReport()

    def begin(self, rate: int | None) -> ScrubReport:
        """See ``Broker.scrub``."""
        if self._task is not None and not self._task.done():
            raise Conflict("a scrub is under way; wait for its end, or stop it")
        self.report = ScrubReport(state="running", started=self._now(), rate=rate)
        self._task = asyncio.create_task(self._run())
        return self.report

    async def end(self) -> ScrubReport:
        """The report when it is done."""
        if self._task is not None:
            await asyncio.wait([self._task])
        return self.report

    async def stop(self) -> ScrubReport:
        """End it."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await self.end()
            if self.report.state == "running":  # it had not come to its first step
                self.report = replace(self.report, state="stopped", finished=self._now())
        return self.report

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.wall(), UTC)

    async def _run(self) -> None:
        state: ScrubState = "done"
        problem: str | None = None
        try:
            await self._whole_store()
        except asyncio.CancelledError:
            state = "stopped"
        except TensorbusError as error:
            state, problem = "failed", str(error)
            _log.error("the scrub failed: %s", error)
        self.report = replace(self.report, state=state, problem=problem, finished=self._now())
        _log.info(
            "scrub %s: %d messages, %d bytes; %d damaged, %d restored, %d orphans, %d problems of rows",
            state,
            self.report.messages,
            self.report.bytes,
            len(self.report.damaged) + self.report.still_damaged,
            len(self.report.restored),
            len(self.report.orphans),
            len(self.report.rows),
        )

    async def _whole_store(self) -> None:
        messages, size = await self._store.totals()
        rows = await self._workers.sync(self._store.check_rows)
        orphans = [*self._store.leftovers, *await self._workers.sync(self._store.strays)]
        self.report = replace(
            self.report, of_messages=messages, of_bytes=size, rows=tuple(rows), orphans=tuple(orphans)
        )
        for problem in rows:
            _log.error("scrub: %s", problem)
        pace = _Pace(self.report.rate)
        after: int | None = None
        while page := await self._store.messages(">", after, _PAGE, "asc"):
            for info in page:
                after = info.seq
                if info.id in self._store.damaged:
                    await self._look_again(info, pace)
                else:
                    await self._verify(info, pace)
                self.report = replace(self.report, messages=self.report.messages + 1)

    # --- one message ---------------------------------------------------------------------------------

    async def _verify(self, info: MessageInfo, pace: _Pace) -> None:
        problem = await self._problem(info, lambda: self._store.open_frames(info.id, info.bytes), pace)
        if problem is None or await self._store.message(info.id) is None:
            return  # whole, or deleted meanwhile
        self._note_damage(info, problem)
        await self._damaged.put_aside(info.id, problem)

    async def _look_again(self, info: MessageInfo, pace: _Pace) -> None:
        """A damaged message may have been brought back, to its place or to the quarantine."""
        for find in (self._store.open_frames, self._store.open_quarantined):
            problem = await self._problem(info, lambda find=find: find(info.id, info.bytes), pace)
            if problem is None:
                self._note_restored(info)
                await self._damaged.restore(info.id, in_place=find == self._store.open_frames)
                return
        self.report = replace(self.report, still_damaged=self.report.still_damaged + 1)

    def _note_damage(self, info: MessageInfo, problem: str) -> None:
        if len(self.report.damaged) < _MOST_NAMED:
            self.report = replace(self.report, damaged=(*self.report.damaged, (info.id, problem)))
        else:
            self.report = replace(self.report, still_damaged=self.report.still_damaged + 1)

    def _note_restored(self, info: MessageInfo) -> None:
        if len(self.report.restored) < _MOST_NAMED:
            self.report = replace(self.report, restored=(*self.report.restored, info.id))

    async def _problem(
        self, info: MessageInfo, find: Callable[[], int | bytes | RemoteFrames], pace: _Pace
    ) -> str | None:
        """What is wrong with the frames of a message; None if nothing is."""
        try:
            source = FrameSource(await self._workers.sync(find))
        except StoreDamaged as damage:
            return str(damage)
        try:
            await self._verify_frames(info, source, pace)
        except StoreDamaged as damage:
            return str(damage)
        finally:
            await self._workers.finish(self._workers.sync(source.close))
        return None

    async def _verify_frames(self, info: MessageInfo, source: FrameSource, pace: _Pace) -> None:
        await self._step(lambda: check_size(source, info.bytes))
        source.doubt()  # what this process remembers of it, and copies that lag, are not what is asked for
        check = Verification(source, info.bytes, info.digest)
        await self._step(lambda: _forget(source))
        while check.verified < info.bytes:
            before = check.verified
            await self._step(lambda: _burst(check, info.bytes))
            done = check.verified - before
            self.report = replace(self.report, bytes=self.report.bytes + done)
            await pace.keep(done)
        await self._step(lambda: _forget(source))
        if check.frames != info.frames:
            raise StoreDamaged(f"it has {check.frames} frames instead of {info.frames}")

    async def _step(self, work: Callable[[], None]) -> None:
        """In a worker thread, which is waited for even if the scrub is stopped: it uses the descriptor."""
        step: Coroutine[object, object, None] = self._workers.sync(work)
        task = self._workers.start(step)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            raise


def _burst(check: Verification, size: int) -> None:
    end = min(check.verified + _BURST, size)
    while check.verified < end:
        check.ahead(check.verified)


def _forget(source: FrameSource) -> None:
    """Let the page cache forget a file, where the system can."""
    if source.fd is not None and hasattr(os, "posix_fadvise"):
        os.posix_fadvise(source.fd, 0, 0, os.POSIX_FADV_DONTNEED)


class _Pace:
    """Keeps below so many bytes per second, on average since it was made."""

    def __init__(self, rate: int | None) -> None:
        self._rate = rate
        self._free_at = 0.0

    async def keep(self, count: int) -> None:
        """``count`` bytes were read: wait until the next may be."""
        if self._rate is None:
            await asyncio.sleep(0)
            return
        now = asyncio.get_running_loop().time()
        self._free_at = max(self._free_at, now) + count / self._rate
        await asyncio.sleep(self._free_at - now)
