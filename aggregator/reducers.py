"""Reducers: how the updates of a round become one model.

A reducer sees every slice of every update once, in the order of folding, and keeps whatever it needs. It
runs in a worker thread, one call at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tensorbus.codecs.item import Item, ItemSpec
from tensorbus.streaming.decoder import SliceEvent

from .accumulator import Accumulator, Conversion
from .layout import Layout


class Reducer(Protocol):
    """Turns the slices of a round's updates into the items of the next model."""

    def begin(self, manifest: Sequence[ItemSpec], weight: float) -> None:
        """An update of this manifest and weight follows, slice by slice.

        Raises:
            ManifestMismatch, LimitExceeded: it is not of the model's layout; nothing was changed.
        """
        ...

    def accumulate(self, event: SliceEvent) -> None:
        """The next slice of the update that began; its payload is valid during the call only.

        Raises:
            NonFiniteValues, PayloadMismatch: the update cannot be used; only ``reset`` helps now.
        """
        ...

    def result(self) -> Sequence[Item]:
        """The items of the next model, in the order of the layout; valid until ``reset``. Called once."""
        ...

    def reset(self) -> None:
        """Forget every update, to begin a round or to begin it again."""
        ...


class WeightedMean:
    """Σ weightᵢ·valueᵢ / Σ weightᵢ of each tensor: federated averaging (McMahan et al. 2017).

    Scalars and byte strings have no mean: they are those of the update that was folded last.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._sums = Accumulator(layout.specs)
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
        self._sums.add(self._targets[spec.name], event, self._weight)

    def result(self) -> Sequence[Item]:
        self._sums.divide(self._total)
        convert = Conversion()
        items: list[Item] = []
        for spec in self._layout.specs:
            if spec.kind != "tensor":
                items.append(self._extras[spec.name])
            elif spec.view is None:
                items.append(self._sums.item(spec, convert))
            else:
                items.append(_Named(spec))
        return items

    def reset(self) -> None:
        self._sums.reset()
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
