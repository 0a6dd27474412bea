"""SyncParticipant: a site's side of a job in a plain training loop.

    with SyncParticipant("http://127.0.0.1:8080", job="sft", site="a") as site:
        for task in site.rounds():
            model.load_state_dict(task.load())
            …                                               # train
            task.submit(model.state_dict(), num_examples=812)
        model.load_state_dict(site.final.load())

The event loop runs in a thread of its own, so that transfers and heartbeats go on while the caller trains.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from tensorbus.bus.client import Receipt
from tensorbus.bus.client.addresses import Urls
from tensorbus.bus.client.portal import Portal
from tensorbus.bus.client.sync import SyncClient

from .arriving import Arriving
from .job import JobSpec
from .participant import Participant, Task

T = TypeVar("T")


class Calls:
    """Calls of one site that are under way, also those of which the caller was interrupted.

    Ctrl-C ends the waiting at once; the call itself ends when its threads have let go of what they work on.
    """

    def __init__(self, portal: Portal) -> None:
        self._portal = portal
        self._running: set[asyncio.Task[Any]] = set()

    def call(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """See `Portal.call`."""

        async def run() -> T:
            task = cast("asyncio.Task[Any]", asyncio.current_task())
            self._running.add(task)
            try:
                return await make()
            finally:
                self._running.discard(task)

        return self._portal.call(run)

    def finish(self) -> None:
        """Wait until none is under way."""

        async def ended() -> None:
            while self._running:
                await asyncio.wait(self._running)

        self._portal.finish(ended)


class SyncModel:
    """A global model; see `Participant.final`."""

    def __init__(self, calls: Calls, model: Arriving) -> None:
        self._calls = calls
        self.model = model

    def load(self, into: object | None = None) -> object:
        """The model in its container kind, or decoded in place into the tensors of ``into``."""
        return self._calls.call(lambda: self.model.load(into))

    def save(self, path: str | Path) -> None:
        """The model as a safetensors file; it is never in memory."""
        self._calls.call(lambda: self.model.save(path))


class SyncTask:
    """One round's work; see `Task`.

    Attributes:
        task: the same for async code.
    """

    def __init__(self, calls: Calls, task: Task) -> None:
        self._calls = calls
        self.task = task

    @property
    def round(self) -> int:
        """From 1."""
        return self.task.round

    @property
    def spec(self) -> JobSpec:
        """The job as its aggregator runs it."""
        return self.task.spec

    def load(self, into: object | None = None) -> object:
        """See `Task.load`."""
        return self._calls.call(lambda: self.task.load(into))

    def save(self, path: str | Path) -> None:
        """See `Task.save`."""
        self._calls.call(lambda: self.task.save(path))

    def submit(
        self, container: object, num_examples: float, metrics: Mapping[str, float] | None = None
    ) -> Receipt | None:
        """See `Task.submit`."""
        return self._calls.call(lambda: self.task.submit(container, num_examples, metrics))

    def decline(self, reason: str = "") -> None:
        """See `Task.decline`."""
        self._calls.call(lambda: self.task.decline(reason))


class SyncParticipant:
    """One site in one job, for threads without an event loop.

    Args:
        bus: a SyncClient, or the URL of the broker (or several, see `Client`), to which a client is then made
            and closed with this.
        token: with a URL.
        job, site, options: see `Participant`.
    """

    def __init__(
        self, bus: SyncClient | Urls, *, job: str, site: str, token: str | None = None, **options: Any
    ) -> None:
        self._owned = not isinstance(bus, SyncClient)
        self._bus = bus if isinstance(bus, SyncClient) else SyncClient(bus, token)
        self._calls = Calls(self._bus.portal)
        try:
            self._participant = Participant(self._bus.client, job=job, site=site, **options)
        except BaseException:
            if self._owned:
                self._bus.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the state folder, and close the client if it was made here. May be called twice.

        So the next one of this site goes on, in this process too, though a loop was left by Ctrl-C.
        """
        if self._owned:
            self._bus.close()
        else:
            self._calls.finish()
        self._participant.release()

    @property
    def final(self) -> SyncModel:
        """See `Participant.final`."""
        return SyncModel(self._calls, self._participant.final)

    def rounds(self) -> Generator[SyncTask]:
        """See `Participant.rounds`."""
        rounds = cast("AsyncGenerator[Task]", self._participant.rounds())
        with self._portal.iterating(rounds) as tasks:
            for task in tasks:
                yield SyncTask(self._calls, task)

    def leave(self, reason: str = "") -> None:
        """See `Participant.leave`."""
        self._calls.call(lambda: self._participant.leave(reason))

    @property
    def _portal(self) -> Portal:
        return self._bus.portal
