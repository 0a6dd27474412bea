"""Items of a round's result: means in the model's dtype, and what is not averaged."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from tensorbus.codecs.base import Accumulator as Values
from tensorbus.codecs.dtypes import DTYPES, DType
from tensorbus.codecs.floats import QUANTISABLE, as_bytes
from tensorbus.codecs.item import Item, ItemSpec
from tensorbus.codecs.scratch import pieces, scratch
from tensorbus.codecs.values import convert
from tensorbus.errors import UnsupportedDtype
from tensorbus.streaming.buffers import SliceBuffer

Means = Callable[[int, int], Values]
"""The means of elements from start to stop, at most ``PIECE`` of them, as float32 or float64."""


def precision(spec: ItemSpec) -> DType:
    """What a tensor is summed in, float32 or float64.

    Raises:
        UnsupportedDtype: it has no mean (complex and 8-bit floats).
    """
    if spec.dtype.name in QUANTISABLE and spec.dtype.name != "float64":
        return DTYPES["float32"]
    if spec.dtype.kind in ("int", "bool") or spec.dtype.name == "float64":
        return DTYPES["float64"]
    raise UnsupportedDtype(f"{spec.name!r} is {spec.dtype}, which has no mean; keep it out of the model")


def typed(values: npt.NDArray[np.uint8], spec: ItemSpec) -> Values:
    """The bytes as numbers of that precision."""
    return values.view(np.float32) if precision(spec).name == "float32" else values.view(np.float64)


class Averaged(Item):
    """A tensor of the result, of means that are made when they are read.

    ``buffer`` is what ``read`` converts into, the same for all items of a source.
    """

    concurrent = True

    def __init__(self, spec: ItemSpec, means: Means, buffer: SliceBuffer) -> None:
        self.spec = spec
        self._means = means
        self._buffer = buffer

    def read(self, offset: int, count: int) -> memoryview:
        out = self._buffer.take(count * self.spec.dtype.itemsize)
        self.read_into(offset, count, out)
        return out

    def read_into(self, offset: int, count: int, out: memoryview) -> None:
        size = self.spec.dtype.itemsize
        into = as_bytes(out)
        for start, stop in pieces(count):
            as_dtype(self._means(offset + start, offset + stop), self.spec, into[start * size : stop * size])


class Stored(Item):
    """An item whose bytes lie somewhere, as they are."""

    stable = True
    concurrent = True

    def __init__(self, spec: ItemSpec, values: npt.NDArray[np.uint8]) -> None:
        self.spec = spec
        self._values = values

    def read(self, offset: int, count: int) -> memoryview:
        size = self.spec.dtype.itemsize
        return self._values[offset * size : (offset + count) * size].data


class Named(Item):
    """A second name of a tensor that is sent under another; it has nothing to read."""

    def __init__(self, spec: ItemSpec) -> None:
        self.spec = spec

    def read(self, offset: int, count: int) -> memoryview:
        raise AssertionError(f"{self.spec.name!r} is a view of {self.spec.view}; it is never read")


def as_dtype(means: Values, spec: ItemSpec, into: npt.NDArray[np.uint8]) -> None:
    """Write means, at most ``PIECE`` of them, as ``spec.dtype`` to ``into``, which has exactly their size.

    Floats are rounded to the nearest float32, and that to a 16-bit dtype; integers to the nearest, ties to
    even. A bool is what the majority says, and False in a tie.
    """
    if spec.dtype.name == means.dtype.name:
        into[:] = means.view(np.uint8)
    elif spec.dtype.kind == "float":
        with np.errstate(over="ignore"):
            convert(means.view(np.uint8), DTYPES[means.dtype.name], into, spec.dtype)
    elif spec.dtype.kind == "bool":
        np.greater(means, 0.5, out=into.view(np.bool_))
    else:
        _round(means, into.view(np.dtype(spec.dtype.name)))


def _round(means: Values, into: npt.NDArray[np.integer]) -> None:
    limits = np.iinfo(into.dtype)
    # The largest int64 and uint64 are no fp64 values: a mean that rounds up to 2^63 would wrap around.
    most = np.float64(limits.max) if limits.bits < 64 else np.nextafter(np.float64(limits.max), 0)
    whole = scratch("means", means.size, np.float64)
    np.rint(means, out=whole)
    np.clip(whole, np.float64(limits.min), most, out=whole)
    np.copyto(into, whole, casting="unsafe")
