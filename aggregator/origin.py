"""Origin: where the models of a job come from, and where the result of a round goes.

It is the one part in which aggregators differ: at the root of a federation, a round's result is the next
model (`Root`); an aggregator in the midst of a tree gets its models from above, and sends its result there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tensorbus.codecs.item import Item

from .bus_update import BusUpdate
from .models import GlobalModel
from .reducers.base import FindBase, Reducer
from .rounds import Round
from .switch import Switch


@dataclass(frozen=True, slots=True)
class ClosedRound:
    """A round that nothing is added to any more; all of its updates are in the reducer.

    Attributes:
        model: that it began with, and ``current`` is the same to be read.
        find_base: models of earlier rounds, which late updates come from.
    """

    model: GlobalModel
    round: Round
    reducer: Reducer
    current: BusUpdate
    find_base: FindBase


class Origin(Protocol):
    """All of it survives being called again after a restart, at any instant."""

    async def prepare(self) -> None:
        """Once, before anything else. Raises MissingBase, …: the job cannot be run like this."""
        ...

    def rounds(self, model: GlobalModel) -> int:
        """How many rounds the job has, as far as it is known when ``model`` is the newest."""
        ...

    async def start(self, switch: Switch) -> GlobalModel:
        """The model of the round that is open, in this aggregator's own job; the first one is waited for.

        ``switch`` says whether the job is paused: then nothing new is published, here and in ``follow``.

        Raises:
            JobCancelled: the job was cancelled, or ``switch`` says so meanwhile.
        """
        ...

    async def make(self, closed: ClosedRound) -> Sequence[Item]:
        """What the updates come to, valid until the reducer is reset.

        Raises:
            UpdateRefused, CodecError, FrameError, StoreDamaged: an update is to blame; it is dropped, and the
                round opened again.
        """
        ...

    async def follow(self, closed: ClosedRound, made: Sequence[Item]) -> GlobalModel:
        """Have the result go where it belongs; the model that follows, sealed in this job."""
        ...

    async def clean_up(self, model: GlobalModel) -> None:
        """Delete what is not needed any more, ``model`` being the newest; runs while its round is open."""
        ...

    async def cancel(self) -> GlobalModel | None:
        """The job was cancelled: tell the sites, and delete all but the last model.

        The final model, if it was sealed before: then there is nothing to cancel, and nothing was done.
        """
        ...

    async def finish(self) -> None:
        """The final model is sealed, or the job cancelled, and nothing of it is needed any more but that."""
        ...

    async def aclose(self) -> None:
        """The process ends, or begins anew; the job may go on."""
        ...
