"""What reducers read: updates, models, and what each update counts for."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tensorbus.codecs.item import ItemSpec
from tensorbus.errors import CodecError, JobError, TensorbusError
from tensorbus.streaming.decoder import SliceEvent


class FoldingInterrupted(TensorbusError):
    """A message that was to be folded can no longer be read; the round is taken up again from the broker."""


class UpdateRefused(CodecError):
    """An update that was taken before cannot be used after all.

    Attributes:
        message: id of the update that is to blame.
    """

    slug = "update-refused"

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(f"update {message}: {reason}")
        self.message = message


class NotEnoughUpdates(JobError):
    """The reducer needs more updates than there are; more may be added, and the round be closed again."""

    slug = "not-enough-updates"


class Update(Protocol):
    """A sealed container that can be read as often as needed, slice by slice: an update, or a model.

    Reading raises FoldingInterrupted when it is gone, BrokerUnavailable and TransferStalled when it cannot
    be had, and CodecError, FrameError, MissingBase or StoreDamaged when it cannot be decoded.
    """

    @property
    def id(self) -> str:
        """Names it in errors and logs."""
        ...

    @property
    def manifest(self) -> Sequence[ItemSpec]:
        """Its items, in its order."""
        ...

    def slices(self) -> AsyncGenerator[SliceEvent]:
        """All slices in its order, verified and still encoded; each is valid until the next is asked for."""
        ...

    def item_slices(self, name: str) -> AsyncGenerator[SliceEvent]:
        """The slices of one item that is sent, and no view; nothing else is fetched."""
        ...


@dataclass(frozen=True, slots=True)
class Contribution:
    """What an update counts for.

    Attributes:
        message: id of the update.
        site: who made it.
        number: the round whose model it was trained from, its version.
        weight: num_examples times the staleness factor; positive.
        base: id of that model as a base (``message:<digest>``): the update may be a change from it.
        current: whether that model is the open round's.
        scale: factor of its change, in (0, 1]; less than 1 when it was clipped.
        partial: it is no update but the exact sums of many (`Exact.partial`), which carry their own weights.
    """

    message: str
    site: str
    number: int
    weight: float
    base: str
    current: bool = True
    scale: float = 1.0
    partial: bool = False
