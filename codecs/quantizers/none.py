"""``none``: the original bytes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tensorbus.codecs.base import Accumulator, Encoded, Quantizer
from tensorbus.codecs.dtypes import DType
from tensorbus.codecs.floats import QUANTISABLE, add_weighted, as_bytes
from tensorbus.codecs.scratch import pieces, scratch
from tensorbus.codecs.values import accumulate
from tensorbus.errors import PayloadMismatch, UnsupportedDtype

_WHOLE: dict[str, type[np.generic]] = {
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "int64": np.int64,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "bool": np.bool_,
}
"""What has no fractions and is summed as float64, by its numpy dtype."""


class NoQuantizer(Quantizer):
    """Sends values as they are; every dtype comes back bit for bit."""

    name = "none"
    exact = True
    grain = 1

    def config(self) -> dict[str, object]:
        return {"name": self.name}

    def accepts(self, dtype: DType) -> bool:
        return True

    def encoded_size(self, count: int, dtype: DType) -> int:
        return count * dtype.itemsize

    def encode(self, source: memoryview, dtype: DType, out: memoryview) -> Encoded:
        np.copyto(as_bytes(out)[: source.nbytes], as_bytes(source))
        return Encoded(source.nbytes)

    def decode(self, payload: memoryview, dtype: DType, out: memoryview) -> None:
        _require_size(payload, out.nbytes)
        np.copyto(as_bytes(out), as_bytes(payload))

    def accumulate(self, payload: memoryview, dtype: DType, accumulator: Accumulator, weight: float) -> None:
        """As the contract says; integers and bools count as float64.

        Raises:
            UnsupportedDtype: complex numbers and 8-bit floats cannot be summed.
        """
        _require_size(payload, accumulator.size * dtype.itemsize)
        source = as_bytes(payload)
        if dtype.name in QUANTISABLE:
            accumulate(source, dtype, accumulator, weight)
        elif dtype.name in _WHOLE:
            _accumulate_whole(source, _WHOLE[dtype.name], accumulator, weight)
        else:
            raise UnsupportedDtype(f"{dtype} cannot be summed; convert it to a wider type, or leave it out")

    def cut(self, payload: memoryview, dtype: DType, count: int, start: int, stop: int) -> memoryview:
        _require_size(payload, count * dtype.itemsize)
        return payload[start * dtype.itemsize : stop * dtype.itemsize]


def _accumulate_whole(
    source: npt.NDArray[np.uint8], kind: type[np.generic], accumulator: Accumulator, weight: float
) -> None:
    values = source.view(kind)
    for start, stop in pieces(accumulator.size):
        exact = scratch("exact", stop - start, np.float64)
        np.copyto(exact, values[start:stop])
        add_weighted(exact, accumulator[start:stop], weight)


def _require_size(payload: memoryview, nbytes: int) -> None:
    if payload.nbytes != nbytes:
        raise PayloadMismatch(f"the payload has {payload.nbytes} bytes where the slice has {nbytes}")
