"""A Hugging Face Trainer as a site of a federation.

    trainer = Trainer(model=model, args=args, train_dataset=data)
    trainer.add_callback(FederatedCallback("http://broker:8080", job="sft", site="a"))
    trainer.train()

or, without touching the script, whose every Trainer then has the callback:

    python -m tensorbus.integrations.transformers --job sft --site a --url http://broker:8080 train.py …

Strategy. The Trainer stays in charge: batches, learning rate, evaluation and checkpoints are as in the
script. When a round's steps are done, the callback submits the model and holds the Trainer up until the next
one is there, which takes the values' place in the same tensors. The job's end is the training's end.
"""

# transformers is typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownParameterType=false

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tensorbus.aggregator.job import check_name
from tensorbus.aggregator.sync import SyncParticipant
from tensorbus.bus.client.addresses import Urls
from tensorbus.bus.client.sync import SyncClient
from tensorbus.errors import InvalidRequest, JobError, TensorbusError

from .packages import missing

try:
    from transformers.trainer_callback import TrainerCallback
except ModuleNotFoundError as error:
    raise missing("transformers", error) from error

from .training_run import TrainingRun, explained, log

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

__all__ = ["FederatedCallback"]

T = TypeVar("T")


class FederatedCallback(TrainerCallback):
    """Makes the Trainer that it is added to one site of one job.

    The tensors that travel are those of the model's state_dict, of a PeftModel those of its adapter. An
    update's weight is the number of examples that the model was trained on in the round, its metric the mean
    loss.

    Args:
        bus: URL of the broker (or several, see `Client`), or a SyncClient, which is then left open.
        job, site, base, state: see `Participant`.
        token: with a URL.
        steps: of the optimizer in a round. None shares out what the script asks for, ``max_steps`` or epochs,
            evenly among the job's rounds.
        reset_optimizer: forget the optimizer's state (moments) whenever a global model is loaded; it is kept
            otherwise.

    Raises:
        InvalidName, InvalidRequest: of the arguments.
        JobCancelled, BrokerUnavailable, ManifestMismatch, …: from ``Trainer.train``, which they end.
    """

    def __init__(
        self,
        bus: SyncClient | Urls,
        *,
        job: str,
        site: str,
        token: str | None = None,
        steps: int | None = None,
        base: object | None = None,
        state: str | Path | None = None,
        reset_optimizer: bool = False,
    ) -> None:
        if steps is not None and steps < 1:
            raise InvalidRequest(f"{steps} steps a round are none; give 1 or more, or leave it to the job")
        self._steps = steps
        self._reset = reset_optimizer
        self._bus = bus
        self._token = token
        self._options: dict[str, Any] = {
            "job": check_name(job, "job"),
            "site": check_name(site, "site"),
            "base": base,
            "state": state,
        }
        self._client: SyncClient | None = None
        self._run: TrainingRun | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Load the first model, which is waited for."""
        if args.world_size > 1:
            raise JobError(
                f"this training runs in {args.world_size} processes, and FederatedCallback is for one: let a "
                "site train in one process, or take part with SyncParticipant in the first one"
            )
        client = self._client = (
            self._bus if isinstance(self._bus, SyncClient) else SyncClient(self._bus, self._token)
        )

        def begin() -> bool:
            participant = SyncParticipant(client, **self._options)
            run = self._run = TrainingRun(client, participant, kwargs["model"], state.max_steps, self._steps)
            run.begin()
            return run.over

        control.should_training_stop = self._guarded(begin)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """When the round's steps are done: submit, and go on with the next model."""
        run = self._run
        if run is None:
            return
        changed = self._guarded(run.step)
        if changed and self._reset:
            kwargs["optimizer"].state.clear()
        control.should_training_stop |= run.over

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the job, if it is not over; the model is its final one, if it is."""
        self._end("its training has ended", final_again=bool(args.load_best_model_at_end))

    def close(self, reason: str = "its script has ended") -> None:
        """Leave a job that is under way; for a script whose training has ended in an error of its own."""
        self._end(reason)

    def _end(self, reason: str, *, final_again: bool = False) -> None:
        run = self._run
        if run is not None:
            self._guarded(lambda: run.end(reason, final_again=final_again))
            self._let_go()

    def _guarded(self, work: Callable[[], T]) -> T:
        """Do ``work``; an error ends the run, and the training."""
        try:
            return work()
        except BaseException as error:
            if isinstance(error, TensorbusError):
                log.error("%s", explained(error, self._options["job"]))
            self._let_go()
            raise

    def _let_go(self) -> None:
        run, self._run = self._run, None
        client, self._client = self._client, None
        try:
            if run is not None:
                run.close()
        finally:
            if client is not None and client is not self._bus:
                client.close()


if __name__ == "__main__":
    from tensorbus.integrations.script import main

    main()
