"""Exact: the weighted mean, of sums that are the same bits in whatever order and groups updates come.

So a deterministic job gives the same model whatever is retried, restarted or summed in regions first. What
exactly is computed stands in `ExactSums`; weights are summed as fractions. 16 bytes an element.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from tensorbus.aggregator.coverage import Weights
from tensorbus.aggregator.exact_sums import ExactSums
from tensorbus.aggregator.layout import Layout
from tensorbus.aggregator.updates import Contribution, Update
from tensorbus.codecs.item import Item
from tensorbus.errors import InvalidRequest
from tensorbus.streaming.decoder import SliceEvent

from . import partials
from .averaging import Averaging
from .base import Told, Workspace

SMALLEST_WEIGHT = 2.0**-24
"""Of an update, times its scale: below, the grid of 2^-64 would be too coarse."""


class Exact(Averaging):
    """See the module, and `Averaging`. Its memory is one accumulator.

    Raises:
        UnsupportedDtype: a tensor of the layout cannot be averaged.
    """

    def __init__(self, layout: Layout, workspace: Workspace) -> None:
        self._exact = ExactSums(layout.specs, workspace)
        super().__init__(layout, workspace, self._exact, Weights(exact=True))

    @property
    def takes_partials(self) -> bool:
        return True

    async def add(self, update: Update, contribution: Contribution, told: Told) -> None:
        """See `Reducer`. A contribution that is ``partial`` is the sums of many, with weights of their own.

        Raises:
            InvalidRequest: the weight is too small to count exactly, or the sums do not say what they are.
        """
        if contribution.partial:
            await self._add_partial(update, contribution, told)
            return
        weight = contribution.weight * contribution.scale
        if weight < SMALLEST_WEIGHT:
            raise InvalidRequest(f"a weight of {weight:g}; a deterministic job takes 2^-24 and more")
        await super().add(update, contribution, told)

    def partial(self) -> Sequence[Item]:
        """See `Reducer`: the sums of all updates so far and what they count for."""
        tensors = [self._exact.raw(name) for name in self._weights.totals]
        keys = self._extras.keys()
        extras = [self._extras.item(name) for name in keys]
        return [partials.item(self._weights, keys), *tensors, *extras]

    async def _add_partial(self, update: Update, contribution: Contribution, told: Told) -> None:
        partials.match(self.layout, update.manifest)
        self.dirty = True
        about = bytearray(next(spec.nbytes for spec in update.manifest if spec.name == partials.NAME))
        self._extras.begin([spec for spec in update.manifest if spec.name != partials.NAME], ("", 0))
        await self._thread.read(update.slices(), partial(self._take_partial, about), told)
        found = partials.parse(bytes(about), self.layout, update.manifest)
        found.check_weight(contribution.weight)
        found.add_to(self._weights)
        self._extras.commit(found.extras)
        self.dirty = False

    def _take_partial(self, about: bytearray, event: SliceEvent) -> None:
        if event.spec.name == partials.NAME:
            about[event.offset : event.offset + len(event.payload)] = event.payload
        elif event.spec.kind == "tensor":
            self._exact.add_sums(event.spec.name, event)
        else:
            self._extras.write(event)
