"""TrainingRun: one training of one site, cut into the rounds of a job."""

# torch is typed in part only.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import logging
from collections.abc import Generator
from typing import TYPE_CHECKING

from tensorbus.aggregator.sync import SyncModel, SyncParticipant, SyncTask
from tensorbus.bus.client.sync import SyncClient
from tensorbus.errors import BrokerUnavailable, JobCancelled, RoundClosed, TensorbusError

from .model_tensors import ModelTensors
from .watching import Watcher

if TYPE_CHECKING:
    import torch

log = logging.getLogger("tensorbus.transformers")


def steps_of(number: int, rounds: int, steps: int) -> int:
    """Steps of round ``number`` of ``rounds``, where ``steps`` in all are shared out evenly; at least 1."""
    return max(1, number * steps // rounds - (number - 1) * steps // rounds)


class TrainingRun:
    """Loads the model of each round, counts its steps, submits, and goes on with the next.

    Args:
        planned: steps of the optimizer that the script asks for in all.
        steps: of each round; None shares ``planned`` out among the job's rounds.

    Attributes:
        over: whether the job has ended, and the model is its final one.
    """

    def __init__(
        self,
        bus: SyncClient,
        participant: SyncParticipant,
        model: torch.nn.Module,
        planned: int,
        steps: int | None,
    ) -> None:
        self._bus = bus
        self._participant = participant
        self._model = model
        self._planned = planned
        self._steps = steps
        self._tasks: Generator[SyncTask] = participant.rounds()
        self._tensors: ModelTensors | None = None
        self._task: SyncTask | None = None
        self._due = self._done = 0
        self._watcher = Watcher(model)
        self._touched = False
        self.over = False

    def begin(self) -> None:
        """Wait for the model of the round that is open, and load it; or the final one, if the job is over.

        Raises:
            ManifestMismatch: the job's models have other tensors than the model in training.
            JobCancelled, BrokerUnavailable, …: of `Participant.rounds` and `Task.load`.
        """
        for task in self._tasks:
            try:
                self._load(task)
            except RoundClosed as closed:
                log.warning("%s", closed)
                continue
            self._task, self._done = task, 0
            self._due = self._steps or steps_of(task.round, task.spec.rounds, self._planned)
            self._watcher.reset()
            log.info(
                "job %s: round %d of %d, %d steps", task.spec.job, task.round, task.spec.rounds, self._due
            )
            return
        self._task, self.over = None, True
        self._load(self._participant.final)

    def step(self) -> bool:
        """A step of the optimizer is done. Whether the model is another one now. Raises as `begin`."""
        self._touched = True
        self._done += 1
        if self._task is None or self._done < self._due:
            return False
        loss = self._watcher.loss(self._done)
        tensors = self._of(self._task)
        self._task.submit(
            tensors.update(),
            num_examples=max(1, self._watcher.examples),
            metrics={} if loss is None else {"loss": loss},
        )
        self.begin()
        return True

    def end(self, reason: str, *, final_again: bool = False) -> None:
        """The training is over: leave the job if that is not, and let go of everything.

        Args:
            final_again: the script has loaded something else since the job ended.
        """
        try:
            if self.over:
                if final_again or self._touched:
                    self._load(self._participant.final)
            else:
                log.warning("the training has ended before its job: the site leaves")
                self._leave(reason)
        finally:
            self.close()

    def close(self) -> None:
        """Let go of everything, and tell nobody. May be called twice."""
        self._watcher.close()
        self._tasks.close()

    def _leave(self, reason: str) -> None:
        try:
            self._participant.leave(reason[:500])
            next(self._tasks, None)  # ends, and forgets the site's consumer
        except (BrokerUnavailable, JobCancelled) as error:
            log.warning("nobody could be told that this site leaves: %s", error)

    def _load(self, what: SyncTask | SyncModel) -> None:
        tensors = self._of(what)
        target = tensors.target()
        what.load(into=target)
        tensors.take(target)
        self._touched = False

    def _of(self, what: SyncTask | SyncModel) -> ModelTensors:
        """Which tensors travel: settled by the names in the first model, once that is complete."""
        if self._tensors is None:
            arriving = what.task.arriving if isinstance(what, SyncTask) else what.model
            info = self._bus.portal.call(arriving.sealed).info
            names = [spec.name for spec in self._bus.fetch(info.id).manifest if spec.kind == "tensor"]
            self._tensors = ModelTensors(self._model, names)
        return self._tensors


def explained(error: TensorbusError, job: str) -> str:
    """What happened to the training, for a log or a last word."""
    return f"the training stops, its federated job {job!r} cannot go on: {error}"
