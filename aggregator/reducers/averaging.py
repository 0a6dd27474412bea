"""Averaging: what the weighted mean and the exact one have in common.

What each update contributes, of weight w, scale s (norm clipping; mostly 1) and values x, trained from the
model b_v while b is the open round's (see `Contribution`)::

    w·[b + s·(x − b_v)]             which is w·x where s is 1 and b_v is b

Strategy. Only x, or what was added to b_v, is summed as it comes; with what weight the bases go in is noted,
and each is read once at the end, if it is wanted. What an update says of a slice:

    a change c = x − b_v            sum w·s·c           b counts with w
    whole, from the current model   sum w·s·x           b counts with w − w·s
    whole, from an earlier one      sum w·s·x           b counts with w, b_v with −w·s

The mean of a tensor is of the updates that have it. One in no update stays as it is, bit for bit. Earlier
bases are added to the sums; the current one to the mean, with its share of the weight. Where that was all of
it the share is exactly 1, so a round of changes in which nothing changed gives the very same model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from tensorbus.aggregator.coverage import CURRENT, Piece, Weight, Weights
from tensorbus.aggregator.extras import Extras
from tensorbus.aggregator.layout import Layout
from tensorbus.aggregator.result_items import Named
from tensorbus.aggregator.updates import Contribution, Update
from tensorbus.codecs.base import Accumulator
from tensorbus.codecs.item import Item, ItemSpec
from tensorbus.errors import InvalidRequest
from tensorbus.streaming.buffers import SliceBuffer
from tensorbus.streaming.decoder import SliceEvent

from .base import FindBase, Reducer, Told, Workspace, check_base
from .parts import PartThreads
from .stream import SliceThread

SMALLEST_WEIGHT = 2.0**-80
"""Of an update: below, products would leave the range of float32, and the model would become zero."""


class Sums(Protocol):
    """`Accumulator` or `ExactSums`."""

    @property
    def nbytes(self) -> int: ...
    def reset(self) -> None: ...
    def close(self) -> None: ...
    def add(self, name: str, event: SliceEvent, weight: float) -> None: ...
    def add_pieces(self, name: str, event: SliceEvent, pieces: Sequence[Piece]) -> None: ...
    def finish(self, name: str, event: SliceEvent, total: float, shares: Sequence[Piece]) -> None: ...
    def keep(self, name: str, event: SliceEvent) -> None: ...
    def values(self, name: str, total: float) -> Accumulator | None: ...
    def item(self, spec: ItemSpec, buffer: SliceBuffer, total: float = 1.0) -> Item: ...


@dataclass(frozen=True, slots=True)
class _Taking:
    """What the slices of one update count for: ``weight`` is w, ``summed`` is w·s as a float64."""

    targets: Mapping[str, str]
    contribution: Contribution
    weight: Weight
    summed: float


class Averaging(Reducer):
    """A mean that streams each update once, as it comes.

    Args:
        sums: of the layout.
        weights: floats or exact, as the sums are.
    """

    def __init__(self, layout: Layout, workspace: Workspace, sums: Sums, weights: Weights) -> None:
        super().__init__(layout, workspace)
        self._sums = sums
        self._weights = weights
        self._extras = Extras(ordered=weights.exact)
        self._thread = SliceThread()
        # Sums in floats are made as fast as memory is read: a second thread gains nothing there.
        self._parts = PartThreads(None if weights.exact else 1)

    @property
    def nbytes(self) -> int:
        """Bytes of the accumulator."""
        return self._sums.nbytes

    async def reset(self) -> None:
        """See `Reducer`. The first call takes the accumulator's room. Raises StorageFull, StorageError."""
        self.dirty = True
        self._weights.clear()
        self._extras.clear()
        await self._thread.call(self._sums.reset)
        self.dirty = False

    async def add(self, update: Update, contribution: Contribution, told: Told) -> None:
        """See `Reducer`: it is read once, now, and added.

        Raises:
            InvalidRequest: the weight is too small to be counted.
        """
        if contribution.weight < SMALLEST_WEIGHT:
            raise InvalidRequest(f"a weight of {contribution.weight:g}; 2^-80 and more can be counted")
        targets = self.layout.match(update.manifest)
        check_base(update, contribution)
        weight = self._weights.number(contribution.weight)
        taking = _Taking(targets, contribution, weight, contribution.weight * contribution.scale)
        self.dirty = True
        self._weights.count(targets.values(), weight)
        self._extras.begin(update.manifest, (contribution.site, contribution.number))
        await self._thread.read(update.slices(), partial(self._take, taking), told)
        self._weights.end_update()
        self._extras.commit()
        self.dirty = False

    async def close(self, current: Update, find_base: FindBase) -> Sequence[Item]:
        """See `Reducer`. ``current`` is read if a base is wanted, or an item that no update has."""
        self.dirty = True
        for base in self._weights.late():
            await self._read(await find_base(base), self._weights.names(base), partial(self._add_late, base))
        await self._read(current, self._wanted(), self._add_current)
        self._extras.commit()
        self.dirty = False
        buffer = SliceBuffer()
        return [self._item(spec, buffer) for spec in self.layout.specs]

    def values(self, name: str) -> Accumulator | None:
        """See `Reducer`. Divides, which reads and writes the tensor once; None if no update has it."""
        return self._sums.values(name, self._weights.total(name))

    async def aclose(self) -> None:
        """See `Reducer`."""
        await self._thread.call(self._sums.close)
        await self._thread.call(self._parts.close)
        await self._thread.aclose()

    # --- in the thread ------------------------------------------------------------------------------

    def _take(self, taking: _Taking, event: SliceEvent) -> None:
        if event.spec.kind != "tensor":
            self._extras.write(event)
            return
        target, stop = taking.targets[event.spec.name], event.offset + event.count
        cover = partial(self._weights.cover, name=target, start=event.offset, stop=stop)
        summed = self._weights.number(taking.summed)
        if event.codec.needs_base(event.payload):
            cover(CURRENT, weight=taking.weight)
            if not event.payload:
                return  # it is the base, and nothing was added
            event = replace(event, codec=event.codec.change())
        elif not taking.contribution.current:
            cover(CURRENT, weight=taking.weight)
            cover(taking.contribution.base, weight=-summed)
        elif taking.contribution.scale != 1:
            cover(CURRENT, weight=taking.weight - summed)
        self._parts.run(event, lambda part: self._sums.add(target, part, taking.summed))

    def _add_late(self, base: str, target: str, event: SliceEvent) -> None:
        pieces = self._weights.pieces(base, target, event.offset, event.offset + event.count)
        self._sums.add_pieces(target, event, pieces)

    def _add_current(self, target: str, event: SliceEvent) -> None:
        total = self._weights.total(target)
        if event.spec.kind != "tensor":
            self._extras.write(event)
        elif total == 0:
            self._sums.keep(target, event)
        else:
            shares = self._weights.shares(target, event.offset, event.offset + event.count)
            self._sums.finish(target, event, total, shares)

    # --- what is read at the end --------------------------------------------------------------------

    def _wanted(self) -> set[str]:
        """What of the current model is needed: bases of changes, and what no update has."""
        there = {*self._weights.totals, *self._extras.keys()}
        lacking = {spec.name for spec in self.layout.specs if spec.view is None and spec.name not in there}
        return lacking | self._weights.names(CURRENT)

    async def _read(self, model: Update, wanted: set[str], take: Callable[[str, SliceEvent], None]) -> None:
        """Give ``take`` the slices of the items in ``wanted``, with their names in the layout."""
        if not wanted:
            return
        targets = self.layout.match(model.manifest)
        sent = [spec for spec in model.manifest if spec.view is None]
        names = {spec.name: targets.get(spec.name, spec.name) for spec in sent}
        here = [spec for spec in sent if names[spec.name] in wanted]
        self._extras.begin([spec for spec in here if spec.kind != "tensor"], ("", 0))

        def taken(event: SliceEvent) -> None:
            if names[event.spec.name] in wanted:
                take(names[event.spec.name], event)

        if 2 * sum(spec.nbytes for spec in here) >= sum(spec.nbytes for spec in sent):
            await self._thread.read(model.slices(), taken)
            return
        for spec in here:
            await self._thread.read(model.item_slices(spec.name), taken)

    def _item(self, spec: ItemSpec, buffer: SliceBuffer) -> Item:
        if spec.kind != "tensor":
            return self._extras.item(spec.name)
        if spec.view is not None:
            return Named(spec)
        return self._sums.item(spec, buffer, self._weights.total(spec.name))
