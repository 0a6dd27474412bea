"""Accumulator: room for one model at summing precision, and its values as Items of the original dtype.

float32, float16 and bfloat16 tensors are summed in fp32; float64, integer and bool tensors in fp64. Tensors
that share storage have one array. This is all the memory that a round takes, however many updates come.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tensorbus.codecs.base import Accumulator as Values
from tensorbus.codecs.base import Quantizer
from tensorbus.codecs.dtypes import DType, dtype
from tensorbus.codecs.item import Item, ItemSpec
from tensorbus.codecs.registry import quantizer
from tensorbus.errors import NonFiniteValues, UnsupportedDtype

_STEP = 65_536
"""Elements converted at a time: fp64 temporaries of half a megabyte stay in the cache."""

_FP32 = dtype("float32")
_NARROW = {"float16": quantizer("fp16"), "bfloat16": quantizer("bf16")}


class Accumulator:
    """The tensors of a model as flat arrays of sums."""

    def __init__(self, specs: Sequence[ItemSpec]) -> None:
        """Take and touch the memory for every tensor of ``specs`` that is sent.

        Raises:
            UnsupportedDtype: a tensor cannot be averaged (complex and 8-bit floats).
        """
        self._arrays: dict[str, Values] = {}
        for spec in specs:
            if spec.kind == "tensor" and spec.view is None:
                values: Values = np.empty(spec.count, _summing(spec))
                values.fill(0)
                self._arrays[spec.name] = values

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(values.nbytes for values in self._arrays.values())

    def reset(self) -> None:
        """All sums to zero, in place."""
        for values in self._arrays.values():
            values.fill(0)

    def add(
        self, name: str, offset: int, count: int, payload: memoryview, kind: DType, codec: Quantizer, weight: float
    ) -> None:
        """Add ``weight`` times the encoded elements ``offset`` to ``offset + count`` of the tensor ``name``.

        Raises:
            NonFiniteValues: the payload holds NaN or Inf, or the sum leaves the range of its precision.
            PayloadMismatch: see ``Quantizer.accumulate``. The sums are undefined after either.
        """
        values = self._arrays[name][offset : offset + count]
        codec.accumulate(payload, kind, values, weight)
        # Finite values and a finite weight may still overflow the sum, and one Inf would spoil the model for
        # all. min and max carry NaN and Inf along, allocate nothing, and find the slice still in the cache.
        if count and not (np.isfinite(values.min()) and np.isfinite(values.max())):
            raise NonFiniteValues(f"{name!r}: elements {offset} to {offset + count} times {weight:g} are not finite")

    def divide(self, total: float) -> None:
        """Every sum divided by ``total``, in place."""
        for values in self._arrays.values():
            np.divide(values, total, out=values)

    def item(self, spec: ItemSpec, scratch: Scratch) -> Item:
        """The values of a tensor in its original dtype; they are read from the array itself.

        ``scratch`` is where the items of one source convert a slice, when the dtype needs it.
        """
        return _Averaged(spec, self._arrays[spec.name], scratch)


def _summing(spec: ItemSpec) -> type[np.float32] | type[np.float64]:
    if spec.dtype.name in _NARROW or spec.dtype.name == "float32":
        return np.float32
    if spec.dtype.kind in ("int", "bool") or spec.dtype.name == "float64":
        return np.float64
    raise UnsupportedDtype(f"{spec.name!r} is {spec.dtype}, of which no mean can be taken; keep it out of the model")


class Scratch:
    """A buffer that the items of one source convert into, as large as the largest slice that was read."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def take(self, size: int) -> memoryview:
        """``size`` bytes, which the next ``take`` gives out again."""
        if len(self._buffer) < size:
            self._buffer = bytearray(size)
        return memoryview(self._buffer)[:size]


class _Averaged(Item):
    """A tensor of the result, converted slice by slice as it is read."""

    def __init__(self, spec: ItemSpec, values: Values, scratch: Scratch) -> None:
        self.spec = spec
        self._values = values
        self._scratch = scratch

    def read(self, offset: int, count: int) -> memoryview:
        if not count:
            return memoryview(b"")
        values = self._values[offset : offset + count]
        if self.spec.dtype.name in ("float32", "float64"):
            return values.data.cast("B")
        out = self._scratch.take(count * self.spec.dtype.itemsize)
        narrow = _NARROW.get(self.spec.dtype.name)
        if narrow is not None:
            narrow.encode(values.data.cast("B"), _FP32, out)
        else:
            _round(values, np.frombuffer(out, np.dtype(self.spec.dtype.name)))
        return out


def _round(values: Values, out: npt.NDArray[np.generic]) -> None:
    """Means to the nearest integer in ``out``'s range, ties to even; bool by majority, a tie is False."""
    for start in range(0, len(values), _STEP):
        mean = values[start : start + _STEP]
        into = out[start : start + _STEP]
        if out.dtype == np.bool_:
            np.greater(mean, 0.5, out=into)
            continue
        limits = np.iinfo(out.dtype.name)
        whole = np.rint(mean)
        # The largest int64 and uint64 are no fp64 values: a sum that rounds up to 2^63 would wrap around.
        top = np.float64(limits.max) if limits.bits < 64 else np.nextafter(np.float64(limits.max), 0)
        into[...] = np.clip(whole, np.float64(limits.min), top, out=whole)
