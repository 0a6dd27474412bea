"""Rows: a piece of one tensor as each of many updates has it, computed where the cache is.

What an update says of an element is its value x where it came whole, c where it came as a change from the
model b_v that it was trained from; s is the factor that clipping left of the change. The rows are then

    b + s·(x − b_v)  or  b + s·c      with the round's model b    (just x where s = 1 and b_v = b)

or, if the *changes* are asked for, the same without the first term.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tensorbus.aggregator.result_items import precision
from tensorbus.aggregator.updates import Contribution, Update, UpdateRefused
from tensorbus.codecs.base import Accumulator
from tensorbus.codecs.item import ItemSpec
from tensorbus.codecs.scratch import PIECE
from tensorbus.codecs.values import all_finite
from tensorbus.errors import CodecError, FrameError, NonFiniteValues, StoreDamaged

from .decoded import Form
from .reader import Reader

BAD = (CodecError, FrameError, StoreDamaged)
"""What is wrong with a message itself."""

BLOCK = 1 << 18
"""Elements of all rows of a piece together: 1 MiB of float32, which stays in an L2 cache."""

SMALLEST_PIECE = 4096
"""Elements of a row at least, however many rows there are: below that, calls cost more than arithmetic."""


@dataclass(frozen=True, slots=True)
class Member:
    """An update that was taken.

    Attributes:
        targets: for each tensor that it sends, the model's (`Layout.match`).
    """

    update: Update
    contribution: Contribution
    targets: Mapping[str, str]

    @property
    def key(self) -> tuple[int, str, str]:
        """What members are sorted by: nothing that depends on when they came."""
        return self.contribution.number, self.contribution.site, self.contribution.message


@dataclass(frozen=True, slots=True)
class Source:
    """A member at work on a tensor.

    Attributes:
        place: among the members.
        reader: of its slices.
        own: of the model that it was trained from, where that may be needed.
    """

    place: int
    member: Member
    reader: Reader
    own: Reader | None


@dataclass(frozen=True, slots=True)
class Rows:
    """A piece of one tensor, of all members that have it.

    Attributes:
        spec: the tensor, as the model has it.
        start, stop: the piece, in elements of the flat tensor.
        members: places of those whose rows these are, ascending.
        values: a row for each: float32, or float64 for tensors that are combined so; may be overwritten.
        current: the round's model there, where it was read; else None.
        same: nobody changed anything. Then ``values`` was not filled in: all rows are those of ``current``,
            and all changes zero.
    """

    spec: ItemSpec
    start: int
    stop: int
    members: tuple[int, ...]
    values: Accumulator
    current: Accumulator | None
    same: bool


class RowMaker:
    """Makes rows, in memory that is used again.

    Args:
        most: rows at a time.
        changes: whether they are changes, and not values.
    """

    def __init__(self, most: int, changes: bool) -> None:
        self._most = most
        self._changes = changes
        self._blocks: dict[str, Accumulator] = {}

    def width(self, rows: int) -> int:
        """Elements of a piece of so many rows."""
        return max(SMALLEST_PIECE, min(PIECE, BLOCK // (rows + 2) // SMALLEST_PIECE * SMALLEST_PIECE))

    def make(
        self, spec: ItemSpec, start: int, stop: int, sources: Sequence[Source], current: Reader | None
    ) -> Rows:
        """The rows of the elements from ``start`` to ``stop``, which all readers have at hand.

        Raises:
            UpdateRefused: values of a member are NaN, Inf or beyond the range of their dtype, or cannot be
                decoded.
            NonFiniteValues: those of the round's model are NaN or Inf.
            CodecError: a model cannot be decoded.
        """
        block = self._block(spec, len(sources))[:, : stop - start]
        values, ours, scratch = block[: len(sources)], block[-2], block[-1]
        if current is not None:
            current.slice.read(start, stop, ours)
        same = all(source.reader.slice.form is Form.SAME for source in sources)
        if not same:
            if current is not None and not all_finite(ours):
                raise NonFiniteValues(f"item {spec.name!r}: the round's model holds NaN or Inf")
            for row, source in zip(values, sources, strict=True):
                self._fill(row, source, start, stop, ours, scratch)
                if not all_finite(row):
                    error = NonFiniteValues(f"item {spec.name!r}: values are NaN, Inf or beyond {row.dtype}")
                    raise UpdateRefused(source.member.contribution.message, str(error)) from error
        members = tuple(source.place for source in sources)
        return Rows(spec, start, stop, members, values, None if current is None else ours, same)

    def _fill(
        self,
        row: Accumulator,
        source: Source,
        start: int,
        stop: int,
        current: Accumulator,
        scratch: Accumulator,
    ) -> None:
        decoded, contribution = source.reader.slice, source.member.contribution
        if decoded.form is Form.SAME:
            np.copyto(row, 0 if self._changes else current)
            return
        try:
            decoded.read(start, stop, row)
        except BAD as error:
            raise UpdateRefused(contribution.message, str(error)) from error
        if decoded.form is Form.WHOLE and is_plain(contribution) and not self._changes:
            return
        with np.errstate(over="ignore", invalid="ignore"):
            if decoded.form is Form.WHOLE:
                assert source.own is not None
                source.own.slice.read(start, stop, scratch)
                np.subtract(row, scratch, out=row)
            if contribution.scale != 1:
                np.multiply(row, contribution.scale, out=row)
            if not self._changes:
                np.add(row, current, out=row)

    def _block(self, spec: ItemSpec, rows: int) -> Accumulator:
        """Memory for so many rows, one of the round's model and one to compute in."""
        name, width = precision(spec).name, self.width(rows)
        block = self._blocks.get(name)
        if block is None or block.shape[1] < width:
            shape = (self._most + 2, width)
            block = np.empty(shape, np.float32) if name == "float32" else np.empty(shape, np.float64)
            self._blocks[name] = block
        return block[: rows + 2]


def is_plain(contribution: Contribution) -> bool:
    """Whether a whole update of it counts as it is."""
    return contribution.current and contribution.scale == 1
