"""Accumulator: room for one model at summing precision, and its values as Items of the original dtype.

float32, float16 and bfloat16 tensors are summed in fp32; float64, integer and bool tensors in fp64. Tensors
that share storage have one array. This is all the memory that a round takes, however many updates come.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tensorbus.codecs.base import Accumulator as Sums
from tensorbus.codecs.dtypes import DTYPES
from tensorbus.codecs.floats import QUANTISABLE, as_bytes
from tensorbus.codecs.item import Item, ItemSpec
from tensorbus.codecs.scratch import pieces, scratch
from tensorbus.codecs.values import all_finite, convert
from tensorbus.errors import NonFiniteValues, UnsupportedDtype
from tensorbus.streaming.buffers import SliceBuffer
from tensorbus.streaming.decoder import SliceEvent
from tensorbus.streaming.specs import naming


class Accumulator:
    """The tensors of a model as flat arrays of sums."""

    def __init__(self, specs: Sequence[ItemSpec]) -> None:
        """Take and touch the memory for every tensor of ``specs`` that is sent.

        Raises:
            UnsupportedDtype: a tensor cannot be averaged (complex and 8-bit floats).
        """
        self._sums: dict[str, Sums] = {}
        for spec in specs:
            if spec.kind == "tensor" and spec.view is None:
                self._sums[spec.name] = _room(spec)
        self.reset()

    @property
    def nbytes(self) -> int:
        """Bytes of all sums."""
        return sum(sums.nbytes for sums in self._sums.values())

    def reset(self) -> None:
        """All sums to zero, in place."""
        for sums in self._sums.values():
            sums.fill(0)

    def add(self, name: str, event: SliceEvent, weight: float) -> None:
        """Add ``weight`` times the encoded elements of a slice to the tensor ``name``.

        Raises:
            NonFiniteValues: the payload holds NaN or Inf, or the sum leaves the range of its precision.
            PayloadMismatch: see ``SliceCodec.accumulate``. The sums are undefined after either.
        """
        sums = self._sums[name][event.offset : event.offset + event.count]
        with naming(event.spec.name), np.errstate(over="ignore"):
            event.codec.accumulate(event.payload, event.offset, sums, weight)
        _check_finite(name, event.offset, sums)

    def add_pieces(self, name: str, event: SliceEvent, pieces: Sequence[tuple[int, int, float]]) -> None:
        """As ``add``, with a weight for each piece (start, stop, weight) of the slice. Raises as ``add``."""
        sums = self._sums[name]
        values = np.zeros_like(sums[: event.count])
        with naming(event.spec.name), np.errstate(over="ignore"):
            event.codec.accumulate(event.payload, event.offset, values, 1.0)
        for start, stop, weight in pieces:
            piece = values[start - event.offset : stop - event.offset]
            piece *= weight
            sums[start:stop] += piece
            _check_finite(name, start, sums[start:stop])

    def divide(self, total: float) -> None:
        """Every sum divided by ``total``, in place."""
        for sums in self._sums.values():
            np.divide(sums, total, out=sums)

    def item(self, spec: ItemSpec, buffer: SliceBuffer) -> Item:
        """The values of a tensor in its original dtype, read from the sums themselves.

        ``buffer`` is what ``read`` converts into, the same for all items of a source.
        """
        return _Averaged(spec, self._sums[spec.name], buffer)


def _check_finite(name: str, offset: int, sums: Sums) -> None:
    """Finite values and a finite weight may still overflow, and one Inf would spoil the model for all."""
    if not all_finite(sums):  # which finds the slice still in the cache
        raise NonFiniteValues(
            f"{name!r}: values from element {offset} on leave the range of {sums.dtype} when summed"
        )


def _room(spec: ItemSpec) -> Sums:
    if spec.dtype.name in QUANTISABLE and spec.dtype.name != "float64":
        return np.empty(spec.count, np.float32)
    if spec.dtype.kind in ("int", "bool") or spec.dtype.name == "float64":
        return np.empty(spec.count, np.float64)
    raise UnsupportedDtype(f"{spec.name!r} is {spec.dtype}, which has no mean; keep it out of the model")


def _convert(sums: Sums, spec: ItemSpec, out: memoryview) -> None:
    """Write sums as ``spec.dtype`` to ``out``, which has exactly their size.

    Integers are rounded to the nearest, ties to even; a bool is what the majority says, a tie is False.
    """
    converted = as_bytes(out)
    if spec.dtype.kind == "float":
        convert(sums.view(np.uint8), DTYPES[sums.dtype.name], converted, spec.dtype)
        return
    for start, stop in pieces(sums.size):
        into = converted[start * spec.dtype.itemsize : stop * spec.dtype.itemsize]
        piece = sums[start:stop]
        if spec.dtype.kind == "bool":
            np.greater(piece, 0.5, out=into.view(np.bool_))
        else:
            _round(piece, into.view(np.dtype(spec.dtype.name)))


def _round(means: Sums, into: npt.NDArray[np.integer]) -> None:
    limits = np.iinfo(into.dtype)
    # The largest int64 and uint64 are no fp64 values: a mean that rounds up to 2^63 would wrap around.
    most = np.float64(limits.max) if limits.bits < 64 else np.nextafter(np.float64(limits.max), 0)
    whole = scratch("means", means.size, np.float64)
    np.rint(means, out=whole)
    np.clip(whole, np.float64(limits.min), most, out=whole)
    np.copyto(into, whole, casting="unsafe")


class _Averaged(Item):
    """A tensor of the result; what is summed in its own dtype is sent from where it lies."""

    concurrent = True

    def __init__(self, spec: ItemSpec, means: Sums, buffer: SliceBuffer) -> None:
        self.spec = spec
        self.stable = spec.dtype.name in ("float32", "float64")
        self._means = means
        self._buffer = buffer

    def read(self, offset: int, count: int) -> memoryview:
        if self.stable:
            return self._means[offset : offset + count].view(np.uint8).data
        out = self._buffer.take(count * self.spec.dtype.itemsize)
        self.read_into(offset, count, out)
        return out

    def read_into(self, offset: int, count: int, out: memoryview) -> None:
        if self.stable:
            super().read_into(offset, count, out)
        else:
            _convert(self._means[offset : offset + count], self.spec, out)
