"""Reducer: the contract of everything that makes one model of a round's updates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tensorbus.aggregator.layout import Layout
from tensorbus.aggregator.updates import Contribution, Update
from tensorbus.codecs.base import Accumulator
from tensorbus.codecs.chain import codec_of
from tensorbus.codecs.item import Item
from tensorbus.errors import InvalidSpecification, MissingBase

Told = Callable[[int], None]
"""Hears the encoded bytes of an update that are in, after each slice."""

FindBase = Callable[[str], Awaitable[Update]]
"""The model with this base id (``message:<digest>``). Raises FoldingInterrupted when it is gone."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """What a reducer may use besides memory for one accumulator.

    Attributes:
        folder: gives the job's state folder, which is made when it is first asked for; blocks.
        accumulator: "memory", or "file" for a memory-mapped file in the state folder.
        deterministic: the result may not depend on the order or the grouping of updates.
    """

    folder: Callable[[], Path]
    accumulator: str = "memory"
    deterministic: bool = False


class Reducer(ABC):
    """Makes the next model out of the round's model and the updates to it.

    One call at a time. ``dirty`` says that an update was added in part: then only ``reset`` helps.
    """

    dirty: bool = False

    def __init__(self, layout: Layout, workspace: Workspace) -> None:
        self.layout = layout
        self.workspace = workspace

    @property
    def least(self) -> int:
        """How many updates it needs at least."""
        return 1

    @property
    def takes_partials(self) -> bool:
        """Whether ``add`` takes the exact sums of a region; see `partials`."""
        return False

    async def begin(self, number: int, find_base: FindBase) -> None:  # noqa: B027  most need neither
        """Round ``number`` is the open one, now or again after a restart; called before ``reset``.

        Args:
            number: of the round, which is that of the model it begins with.
            find_base: models that updates were trained from, the round's own among them; until the next call.

        Raises:
            StoreDamaged: what is kept on disk for this round is damaged or missing; says how to go on.
        """

    @abstractmethod
    async def reset(self) -> None:
        """Forget every update, to begin a round or to begin it again."""

    @abstractmethod
    async def add(self, update: Update, contribution: Contribution, told: Told) -> None:
        """Take an update that was sealed; it is read now, and may be read again until the round is over.

        Raises:
            ManifestMismatch, LimitExceeded, MissingBase, NonFiniteValues, PayloadMismatch, FrameError,
            StoreDamaged: it cannot count, and the update is to blame; ``dirty`` says whether the others have
                to be added again.
            FoldingInterrupted, BrokerUnavailable, TransferStalled: it cannot be read now.
        """

    @abstractmethod
    async def close(self, current: Update, find_base: FindBase) -> Sequence[Item]:
        """Every update is in: the items of the next model, in the order of the layout, valid until ``reset``.

        Args:
            current: the round's model, which is read only where it is needed.
            find_base: models of earlier rounds, for updates that came late.

        Raises:
            FoldingInterrupted, BrokerUnavailable, TransferStalled: something cannot be read; add all again.
            NotEnoughUpdates: there are fewer than ``least``; add more, and close again.
            UpdateRefused: one of the updates cannot be used after all; ``reset``, and add the others again.
        """

    def partial(self) -> Sequence[Item]:
        """The exact sums of all updates so far, as items of a message that ``add`` takes; see `partials`.

        Valid until ``reset`` or the next ``add``, and not after ``close``.

        Raises:
            InvalidSpecification: this reducer has none.
        """
        raise InvalidSpecification(f"{type(self).__name__} has no exact sums to be sent upward")

    def values(self, name: str) -> Accumulator | None:
        """What the closed round's item of this name is read from, flat and writable; until ``reset``.

        float32 for tensors of float32, float16 and bfloat16, float64 for the others; for server optimisers,
        which go on with it in place. None if no update has the tensor, so that it stays as it is.

        Args:
            name: of a tensor that is sent, as the model calls it.

        Raises:
            InvalidSpecification: this reducer has no such arrays.
        """
        kind = type(self).__name__
        raise InvalidSpecification(f"no server optimiser can follow {kind}: it lacks values()")

    async def commit(self, number: int) -> None:  # noqa: B027  most reducers have no state
        """The model of round ``number``, made by ``close``, is sealed: keep the state that goes with it.

        May be called again for the same number.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Give memory, files and threads back."""


def check_base(update: Update, contribution: Contribution) -> None:
    """Refuse an update that is a change from anything but the model that it says it was trained from.

    Raises:
        MissingBase: it is; the item is named.
    """
    for spec in update.manifest:
        against = codec_of(spec).base if spec.view is None else None
        if against is not None and against != contribution.base:
            base = contribution.base
            allowed = f"may be a change from {base} only" if base else "has to be sent whole"
            raise MissingBase(f"{spec.name!r} is encoded against {against}; it {allowed}")
