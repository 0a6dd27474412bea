"""ExactSums: as `Accumulator`, of 128-bit integers, so that neither order nor grouping makes a difference.

16 bytes an element. What is computed, of updates with values x and weights w (see `Averaging`)::

    S = Σ grid(w·x)                 w·x rounded to float64, then to a multiple of 2^-64; the sum is exact
    W = Σ w                         exact, then rounded to float64
    mean = S / W                    rounded once to float64
         + share·b                  where the current base b has a share: product and sum in float64

and that rounded to the model's dtype as `Averaged` does: float64 → float32 → float16 or bfloat16. Values of
earlier bases are added to S like those of updates. Where nothing was added and the share is 1, the mean is b.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tensorbus.codecs import exact
from tensorbus.codecs.base import Accumulator as Values
from tensorbus.codecs.chain import QuantizerCodec
from tensorbus.codecs.dtypes import DTYPES, DType, dtype
from tensorbus.codecs.floats import QUANTISABLE, as_bytes, widen
from tensorbus.codecs.item import Item, ItemSpec
from tensorbus.codecs.scratch import pieces as parts
from tensorbus.codecs.scratch import scratch
from tensorbus.codecs.values import all_finite
from tensorbus.errors import NonFiniteValues
from tensorbus.streaming.buffers import SliceBuffer
from tensorbus.streaming.decoder import SliceEvent
from tensorbus.streaming.specs import naming

from .coverage import Piece
from .reducers.base import Workspace
from .result_items import Averaged, Stored, precision, typed
from .tensor_room import TensorRoom, tensors_of

Bytes = npt.NDArray[np.uint8]
Doubles = npt.NDArray[np.float64]

FLOAT64 = DTYPES["float64"]


class _Decoded(threading.local):
    """What each thread decodes into."""

    def __init__(self) -> None:
        self.buffer = SliceBuffer()


class ExactSums(TensorRoom):
    """The tensors of a model as exact sums. Arguments and methods are those of `Accumulator`."""

    def __init__(self, specs: Sequence[ItemSpec], workspace: Workspace) -> None:
        tensors = tensors_of(specs)
        for spec in tensors.values():
            precision(spec)  # raises where there is no mean
        sizes = {name: spec.count * exact.BYTES for name, spec in tensors.items()}
        super().__init__(tensors, sizes, workspace)
        self._decoded = _Decoded()
        self._split: dict[str, bytes] = {}

    def reset(self) -> None:
        """See `TensorRoom`."""
        self._split.clear()
        super().reset()

    def add(self, name: str, event: SliceEvent, weight: float) -> None:
        """See `Accumulator`."""
        self.add_pieces(name, event, [(event.offset, event.offset + event.count, weight)])

    def add_pieces(self, name: str, event: SliceEvent, pieces: Sequence[Piece]) -> None:
        """See `Accumulator`."""
        if not pieces:
            return
        values, kind = self._decode(event)
        sums = self._sums(name)
        with naming(event.spec.name):
            for start, stop, weight in pieces:
                first, last = start - event.offset, stop - event.offset
                part = values[first * kind.itemsize : last * kind.itemsize]
                if kind.name in QUANTISABLE:
                    exact.add_products(part, kind, sums[2 * start : 2 * stop], weight)
                    continue
                for begin, end in parts(last - first):
                    doubles = _doubles(part[begin * kind.itemsize : end * kind.itemsize], kind)
                    rows = sums[2 * (start + begin) : 2 * (start + end)]
                    exact.add_products(doubles.view(np.uint8), FLOAT64, rows, weight)

    def add_sums(self, name: str, event: SliceEvent) -> None:
        """Add a slice of exact sums: of an int64 tensor [count, 2], as `raw` gives it. Raises as ``add``."""
        values, _ = self._decode(event)
        before = self._split.pop(name, b"")
        first = event.offset - len(before) // 8
        if before:  # the slice before ended within a sum
            values = np.frombuffer(before + values.tobytes(), np.uint8)
        if len(values) % exact.BYTES:
            self._split[name] = values[-8:].tobytes()
            values = values[:-8]
        with naming(event.spec.name):
            exact.add_sums(values, self._sums(name)[first : first + len(values) // 8])

    def finish(self, name: str, event: SliceEvent, total: float, shares: Sequence[Piece]) -> None:
        """See `Accumulator`; the slices of a tensor have to come in their order."""
        self._divided.add(name)
        if not shares:
            self._divide(name, event.offset, event.offset + event.count, total)
            return
        values, kind = self._decode(event)
        sums, means = self._sums(name), self._means(name)
        for start, stop in parts(event.count):
            first, last = event.offset + start, event.offset + stop
            out = scratch("exact means", stop - start, np.float64)
            exact.divide(sums[2 * first : 2 * last], total, out)
            base = _doubles(values[start * kind.itemsize : stop * kind.itemsize], kind)
            for begin, end, share in shares:
                begin, end = max(begin, first) - first, min(end, last) - first
                if begin < end:
                    _add_share(out[begin:end], base[begin:end], share)
            _store(name, first, out, means[first:last])

    def values(self, name: str, total: float) -> Values | None:
        """See `Accumulator`."""
        if name in self._kept:
            return None
        means = self._means(name)
        if name not in self._divided:
            self._divided.add(name)
            self._divide(name, 0, means.size, total)
        return means

    def item(self, spec: ItemSpec, buffer: SliceBuffer, total: float = 1.0) -> Item:
        """See `Accumulator`."""
        if spec.name in self._kept:
            return Stored(spec, self._room.part(spec.name)[: spec.nbytes])
        sums, finished = self._sums(spec.name), self._means(spec.name)

        def means(start: int, stop: int) -> Values:
            if spec.name in self._divided:
                return finished[start:stop]
            out = scratch("exact means", stop - start, np.float64)
            exact.divide(sums[2 * start : 2 * stop], total, out)
            return out

        if spec.name in self._divided and spec.dtype.name == finished.dtype.name:
            return Stored(spec, finished.view(np.uint8))
        return Averaged(spec, means, buffer)

    def raw(self, name: str) -> Item:
        """The sums themselves, before anything was divided: an int64 tensor [count, 2]."""
        spec = ItemSpec(name, dtype("int64"), (self._specs[name].count, 2))
        return Stored(spec, self._room.part(name))

    def _sums(self, name: str) -> exact.Sums:
        return self._room.part(name).view(np.int64)

    def _means(self, name: str) -> Values:
        """Where the values are when they are divided: at the front of the sums, and half as large at most."""
        spec = self._specs[name]
        return typed(self._room.part(name)[: spec.count * precision(spec).itemsize], spec)

    def _divide(self, name: str, start: int, stop: int, total: float) -> None:
        sums, means = self._sums(name), self._means(name)
        for begin, end in parts(stop - start):
            first, last = start + begin, start + end
            out = scratch("exact means", end - begin, np.float64)
            exact.divide(sums[2 * first : 2 * last], total, out)
            _store(name, first, out, means[first:last])

    def _decode(self, event: SliceEvent) -> tuple[Bytes, DType]:
        """The values of a slice and their dtype, which for a change is float32; until the next call."""
        if isinstance(event.codec, QuantizerCodec) and event.codec.copies:
            return as_bytes(event.payload), event.codec.dtype
        if event.codec.base is not None and not event.codec.needs_base(event.payload):
            return self._summed(event)
        out = self._decoded.buffer.take(event.count * event.codec.dtype.itemsize)
        with naming(event.spec.name):
            event.codec.decode(event.payload, event.offset, out)
        return as_bytes(out), event.codec.dtype

    def _summed(self, event: SliceEvent) -> tuple[Bytes, DType]:
        """As ``_decode``, of a slice that came whole though its codec has a base: that may be missing."""
        dtype = precision(event.spec)
        out = as_bytes(self._decoded.buffer.take(event.count * dtype.itemsize))
        out.fill(0)
        with naming(event.spec.name):
            event.codec.accumulate(event.payload, event.offset, typed(out, event.spec), 1.0)
        return out, dtype


def _store(name: str, offset: int, out: Doubles, means: Values) -> None:
    """Write the means at the precision of the tensor, if that can hold them."""
    with np.errstate(over="ignore"):
        means[:] = out
    if not all_finite(means):
        raise NonFiniteValues(f"{name!r}: means from element {offset} on leave the range of {means.dtype}")


def _doubles(values: Bytes, kind: DType) -> Doubles:
    """At most ``PIECE`` values as float64, in this thread's scratch."""
    count = values.size // kind.itemsize
    out = scratch("exact values", count, np.float64)
    if kind.name in QUANTISABLE and kind.name != "float64":
        out[:] = widen(values, kind)
    else:
        out[:] = values.view(np.bool_ if kind.kind == "bool" else np.dtype(kind.name))
    return out


def _add_share(means: Doubles, base: Doubles, share: float) -> None:
    """``means += share * base``; where nothing was summed, the sign of a zero is the base's."""
    products = base * share
    np.copyto(means, -0.0, where=means == 0)
    means += products
