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

from collections.abc import AsyncGenerator, Generator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from tensorbus.bus.client import Receipt
from tensorbus.bus.client.portal import Portal
from tensorbus.bus.client.sync import SyncClient

from .arriving import Arriving
from .job import JobSpec
from .participant import Participant, Task


class SyncModel:
    """A global model; see `Participant.final`."""

    def __init__(self, portal: Portal, model: Arriving) -> None:
        self._portal = portal
        self.model = model

    def load(self, into: object | None = None) -> object:
        """The model in its container kind, or decoded in place into the tensors of ``into``."""
        return self._portal.call(lambda: self.model.load(into))

    def save(self, path: str | Path) -> None:
        """The model as a safetensors file; it is never in memory."""
        self._portal.call(lambda: self.model.save(path))


class SyncTask:
    """One round's work; see `Task`.

    Attributes:
        task: the same for async code.
    """

    def __init__(self, portal: Portal, task: Task) -> None:
        self._portal = portal
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
        return self._portal.call(lambda: self.task.load(into))

    def save(self, path: str | Path) -> None:
        """See `Task.save`."""
        self._portal.call(lambda: self.task.save(path))

    def submit(
        self, container: object, num_examples: float, metrics: Mapping[str, float] | None = None
    ) -> Receipt | None:
        """See `Task.submit`."""
        return self._portal.call(lambda: self.task.submit(container, num_examples, metrics))

    def decline(self, reason: str = "") -> None:
        """See `Task.decline`."""
        self._portal.call(lambda: self.task.decline(reason))


class SyncParticipant:
    """One site in one job, for threads without an event loop.

    Args:
        bus: a SyncClient, or the URL of the broker, to which a client is then made and closed with this.
        token: with a URL.
        job, site, options: see `Participant`.
    """

    def __init__(
        self, bus: SyncClient | str, *, job: str, site: str, token: str | None = None, **options: Any
    ) -> None:
        self._bus = SyncClient(bus, token) if isinstance(bus, str) else bus
        self._owned = isinstance(bus, str)
        try:
            self._participant = Participant(self._bus.client, job=job, site=site, **options)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the client, if it was made here. May be called twice."""
        if self._owned:
            self._bus.close()

    @property
    def final(self) -> SyncModel:
        """See `Participant.final`."""
        return SyncModel(self._portal, self._participant.final)

    def rounds(self) -> Generator[SyncTask]:
        """See `Participant.rounds`."""
        rounds = cast("AsyncGenerator[Task]", self._participant.rounds())
        with self._portal.iterating(rounds) as tasks:
            for task in tasks:
                yield SyncTask(self._portal, task)

    def leave(self, reason: str = "") -> None:
        """See `Participant.leave`."""
        self._portal.call(lambda: self._participant.leave(reason))

    @property
    def _portal(self) -> Portal:
        return self._bus.portal
