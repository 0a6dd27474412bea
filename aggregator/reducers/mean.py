"""Reducers: how the updates of a round become one model.

A reducer sees every slice of every update once, in the order of folding, and keeps whatever it needs. It
runs in a worker thread, one call at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from tensorbus.aggregator.accumulator import Accumulator
from tensorbus.aggregator.coverage import Coverage
from tensorbus.aggregator.layout import Layout
from tensorbus.codecs.item import Item, ItemSpec
from tensorbus.streaming.buffers import SliceBuffer
from tensorbus.streaming.decoder import SliceEvent


class Reducer(Protocol):
    """Turns the slices of a round's updates into the items of the next model.

    An update may come as values, or as a change from the round's model, its *base*: then a slice's codec
    says that it ``needs_base``, and ``codec.change()`` gives what was added to it. The base itself comes
    once, when all updates are in, and only if it is wanted; so nobody has to hold it.
    """

    def begin(self, manifest: Sequence[ItemSpec], weight: float) -> None:
        """An update of this manifest and weight follows, slice by slice.

        Raises:
            ManifestMismatch, LimitExceeded: it is not of the model's layout; nothing was changed.
        """
        ...

    def accumulate(self, event: SliceEvent) -> None:
        """The next slice of the update that began; its payload is valid during the call only.

        Raises:
            NonFiniteValues, PayloadMismatch, LimitExceeded: it cannot be used; only ``reset`` helps now.
        """
        ...

    def finish(self) -> bool:
        """Every update is in. Whether the base is wanted: then ``add_base`` gets all of its slices."""
        ...

    def add_base(self, event: SliceEvent) -> None:
        """The next slice of the base, to be decoded as it stands. Raises as ``accumulate``."""
        ...

    def result(self) -> Sequence[Item]:
        """The items of the next model, in the order of the layout; valid until ``reset``. Called once."""
        ...

    def reset(self) -> None:
        """Forget every update, to begin a round or to begin it again."""
        ...


class WeightedMean:
    """Σ weightᵢ·valueᵢ / Σ weightᵢ of each tensor: federated averaging (McMahan et al. 2017).

    Strategy for changes. The mean is Σ weightᵢ·(value or change)ᵢ / Σ weightᵢ, and the base times the share
    of the weight that came as changes. Where that was all of it the share is exactly 1, so a round in which
    nothing changed gives the very same model.

    Scalars and byte strings have no mean: they are those of the update that was folded last.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._sums = Accumulator(layout.specs)
        self._changes = Coverage()
        self._total = 0.0
        self._weight = 0.0
        self._targets: dict[str, str] = {}
        self._extras: dict[str, _Extra] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of the accumulator."""
        return self._sums.nbytes

    def begin(self, manifest: Sequence[ItemSpec], weight: float) -> None:
        self._targets = self._layout.match(manifest)
        self._changes.end_update()
        self._weight = weight
        self._total += weight
        for spec in manifest:
            if spec.kind != "tensor":
                self._extras[spec.name] = _Extra(spec)

    def accumulate(self, event: SliceEvent) -> None:
        spec = event.spec
        if spec.kind != "tensor":
            self._extras[spec.name].write(event.offset, event.payload)
            return
        target = self._targets[spec.name]
        if event.codec.needs_base(event.payload):
            self._changes.add(target, event.offset, event.offset + event.count, self._weight)
            if not event.payload:
                return  # it is the base, and nothing was added
            event = replace(event, codec=event.codec.change())
        self._sums.add(target, event, self._weight)

    def finish(self) -> bool:
        self._changes.end_update()
        self._sums.divide(self._total)
        return bool(self._changes)

    def add_base(self, event: SliceEvent) -> None:
        name, stop = event.spec.name, event.offset + event.count
        pieces = list(self._changes.pieces(name, event.offset, stop))
        shares = [(start, end, weight / self._total) for start, end, weight in pieces]
        if shares and shares[0][:2] == (event.offset, stop):
            self._sums.add(name, event, shares[0][2])
        elif shares:
            self._sums.add_pieces(name, event, shares)

    def result(self) -> Sequence[Item]:
        buffer = SliceBuffer()
        items: list[Item] = []
        for spec in self._layout.specs:
            if spec.kind != "tensor":
                items.append(self._extras[spec.name])
            elif spec.view is None:
                items.append(self._sums.item(spec, buffer))
            else:
                items.append(_Named(spec))
        return items

    def reset(self) -> None:
        self._sums.reset()
        self._changes.clear()
        self._total = 0.0
        self._extras.clear()


class _Extra(Item):
    """A scalar or byte string, kept as it came."""

    def __init__(self, spec: ItemSpec) -> None:
        self.spec = ItemSpec(spec.name, spec.dtype, spec.shape, spec.kind)
        self._value = bytearray(spec.nbytes)

    def write(self, offset: int, payload: memoryview) -> None:
        self._value[offset : offset + len(payload)] = payload

    def read(self, offset: int, count: int) -> memoryview:
        return memoryview(self._value)[offset : offset + count]


class _Named(Item):
    """A second name of a tensor that is sent under another; it has nothing to read."""

    def __init__(self, spec: ItemSpec) -> None:
        self.spec = spec

    def read(self, offset: int, count: int) -> memoryview:
        raise AssertionError(f"{self.spec.name!r} is a view of {self.spec.view}; it is never read")
