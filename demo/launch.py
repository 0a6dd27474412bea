"""Launch: starts broker, aggregator and sites, watches them to their end, and stops what it started.

Strategy: every process tells its events on stdout, the scoreboard counts them and the view shows them. All
processes are watched from their start; the first that ends before its work is done ends the run, with its
last words. However a run ends, exactly the processes that it started are stopped.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from tempfile import mkdtemp

from tensorbus.errors import TensorbusError

from .display import View
from .memory import PeakMeter, resident
from .model import WEIGHTS
from .processes import Child, Event, ProcessFailed
from .scoreboard import AGGREGATOR, BROKER, Scoreboard
from .settings import JOB, DemoSettings

TICK = 0.2
"""Seconds between two looks at the memory of broker and aggregator."""
PREPARE = "model"


class Launch:
    """One run of the demo."""

    def __init__(self, settings: DemoSettings, scores: Scoreboard, view: View) -> None:
        self._settings = settings
        self._scores = scores
        self._view = view
        self._logs = settings.output / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        # A new folder each time: nothing that may lie in the output folder is in the way, or gets removed.
        self._work = Path(mkdtemp(prefix="run-", dir=settings.output))
        self._model = self._work / "model"
        self._data = self._work / "broker"
        self._ready = asyncio.Event()
        self._meter: PeakMeter | None = None
        self._children: dict[str, Child] = {}

    async def run(self) -> None:
        """Run the federation to its end.

        Raises:
            ProcessFailed: a process did not do its work; the others have been stopped.
            asyncio.CancelledError: it was cancelled; all processes have been stopped.
        """
        try:
            async with asyncio.TaskGroup() as watchers:
                ticking = watchers.create_task(self._tick())
                await self._federate(watchers)
                ticking.cancel()
        except* TensorbusError as failures:
            raise _first(failures) from None
        finally:
            await asyncio.gather(*(child.stop() for child in self._children.values()))
            if not self._settings.keep_data:
                shutil.rmtree(self._work, ignore_errors=True)

    async def _federate(self, watchers: asyncio.TaskGroup) -> None:
        broker = await self._start(BROKER, self._broker_arguments())
        broker_ends = watchers.create_task(self._must_not_end(broker))
        prepare = await self._start(PREPARE, self._model_arguments(), threads=self._settings.threads)
        self._scores.begins(
            PREPARE, "making a toy" if self._settings.tiny else "unpacking SmolLM2-135M-Instruct"
        )
        await prepare.run()
        del self._scores.doing[PREPARE]
        await self._ready.wait()
        workers = [await self._start(AGGREGATOR, self._aggregator_arguments())]
        for share, site in enumerate(self._settings.site_names):
            arguments = self._site_arguments(share, site)
            workers.append(await self._start(f"site-{site}", arguments, self._settings.threads))
        async with asyncio.TaskGroup() as work:
            for worker in workers:
                work.create_task(worker.run())
        self._look_at_memory()
        broker_ends.cancel()

    async def _start(self, name: str, arguments: list[str], threads: int = 1) -> Child:
        child = Child(name, arguments, self._logs / f"{name}.log", self._take)
        self._children[name] = child
        self._scores.begins(name, "starting")
        await child.start(threads)
        return child

    async def _must_not_end(self, child: Child) -> None:
        await child.run()
        raise ProcessFailed(f"{child.name} ended before the run did")

    def _take(self, process: str, event: Event) -> None:
        self._scores.take(process, event)
        if event.get("event") == "ready":
            self._ready.set()
        if process == AGGREGATOR:
            pid = self._children[AGGREGATOR].pid
            if event.get("event") == "round" and self._meter is None and pid is not None:
                # From here on its accumulator is there: whatever it takes now is beyond it.
                self._meter = PeakMeter(pid)
            self._look_at_memory()
        self._view.event(process, event)

    async def _tick(self) -> None:
        while True:
            self._look_at_memory()
            self._view.tick()
            await asyncio.sleep(TICK)

    def _look_at_memory(self) -> None:
        broker = self._children[BROKER].pid if BROKER in self._children else None
        if broker is not None and (sizes := resident(broker)) is not None:
            self._scores.grew(BROKER, sizes[1])
        if self._meter is not None and (growth := self._meter.growth()) is not None:
            self._scores.grew(AGGREGATOR, growth)

    # --- command lines -----------------------------------------------------------------------------------

    def _broker_arguments(self) -> list[str]:
        port = str(self._settings.port)
        return ["-m", "tensorbus", "serve", "--port", port, "--data", str(self._data), "--json"]

    def _model_arguments(self) -> list[str]:
        tiny = ["--tiny", "--seed", str(self._settings.seed)] if self._settings.tiny else []
        return ["-m", "tensorbus.demo.model", str(self._model), *tiny]

    def _aggregator_arguments(self) -> list[str]:
        settings = self._settings
        keep = [argument for pattern in settings.keep for argument in ("--keep", pattern)]
        return [
            *("-m", "tensorbus", "aggregate", "--json"),
            *("--url", self._scores.url),
            *("--job", JOB),
            *("--sites", str(settings.sites)),
            *("--rounds", str(settings.rounds)),
            *("--down", settings.down),
            *("--up", settings.up),
            *keep,
            *("--init", str(self._model / WEIGHTS)),
            *("--state", str(self._work / "state")),
        ]

    def _site_arguments(self, share: int, site: str) -> list[str]:
        settings = self._settings
        return [
            *("-m", "tensorbus.demo.site"),
            *("--url", self._scores.url),
            *("--job", JOB),
            *("--site", site),
            *("--model", str(self._model)),
            *("--share", str(share)),
            *("--shares", str(settings.sites)),
            *("--steps", str(settings.steps)),
            *("--seed", str(settings.seed)),
            *("--threads", str(settings.threads)),
            *("--state", str(self._work / "state")),
        ]


def _first(failures: BaseExceptionGroup[TensorbusError]) -> TensorbusError:
    """The failure that came first; the others mostly follow from it."""
    first = failures.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
