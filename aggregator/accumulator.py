"""Accumulator: room for one model at summing precision, and its values as Items of the original dtype.

float32, float16 and bfloat16 tensors are summed in fp32; float64, integer and bool tensors in fp64. Tensors
that share storage have one array. This is all the memory that a round takes, however many updates come; with
``--accumulator file`` it is a file.

Strategy. The sums of a tensor are divided when its values are read, unless a base has to be added to them:
then slice by slice, when the base's slices come. So a result without changes needs no pass of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tensorbus.codecs.base import Accumulator as Sums
from tensorbus.codecs.item import Item, ItemSpec
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


class Accumulator(TensorRoom):
    """The tensors of a model as flat arrays of sums. Its methods block.

    Args:
        specs: of the model; what is no tensor, or a view, has no sums.
        workspace: where they are to lie. The room is taken by the first ``reset``.

    Raises:
        UnsupportedDtype: a tensor cannot be averaged (complex and 8-bit floats).
    """

    def __init__(self, specs: Sequence[ItemSpec], workspace: Workspace) -> None:
        tensors = tensors_of(specs)
        sizes = {name: spec.count * precision(spec).itemsize for name, spec in tensors.items()}
        super().__init__(tensors, sizes, workspace)

    def array(self, name: str) -> Sums:
        """The tensor's sums, flat and writable; its values once it is divided, which ``item`` then reads."""
        return typed(self._room.part(name), self._specs[name])

    def add(self, name: str, event: SliceEvent, weight: float) -> None:
        """Add ``weight`` times the encoded elements of a slice to the tensor ``name``.

        Raises:
            NonFiniteValues: the payload holds NaN or Inf, or the sum leaves the range of its precision.
            PayloadMismatch: see ``SliceCodec.accumulate``. The sums are undefined after either.
        """
        sums = self.array(name)[event.offset : event.offset + event.count]
        with naming(event.spec.name), np.errstate(over="ignore"):
            event.codec.accumulate(event.payload, event.offset, sums, weight)
        _check_finite(name, event.offset, sums)

    def add_pieces(self, name: str, event: SliceEvent, pieces: Sequence[Piece]) -> None:
        """As ``add``, with a weight for each piece (start, stop, weight) of the slice. Raises as ``add``."""
        stop = event.offset + event.count
        if len(pieces) == 1 and pieces[0][:2] == (event.offset, stop):
            self.add(name, event, pieces[0][2])
        elif pieces:
            self._add_some(name, event, pieces)

    def finish(self, name: str, event: SliceEvent, total: float, shares: Sequence[Piece]) -> None:
        """Divide the sums where this slice of a base lies by ``total``, and add its shares to them.

        All slices of the tensor have to come. Where nothing was added to it, a base whose share is 1 keeps
        its bits. Raises as ``add``.
        """
        self._divided.add(name)
        sums = self.array(name)[event.offset : event.offset + event.count]
        np.divide(sums, total, out=sums)
        if shares:
            np.copyto(sums, -0.0, where=sums == 0)  # what leaves the sign of a zero alone when it is added to
            self.add_pieces(name, event, shares)

    def values(self, name: str, total: float) -> Sums | None:
        """The values in ``array``, divided by ``total`` if they are not yet; None for what was kept."""
        if name in self._kept:
            return None
        values = self.array(name)
        if name not in self._divided:
            self._divided.add(name)
            np.divide(values, total, out=values)
        return values

    def item(self, spec: ItemSpec, buffer: SliceBuffer, total: float = 1.0) -> Item:
        """The values of a tensor in its original dtype, read from the sums, which ``total`` divides.

        Args:
            buffer: see `Averaged`.
        """
        if spec.name in self._kept:
            return Stored(spec, self._room.part(spec.name)[: spec.nbytes])
        sums = self.array(spec.name)

        def means(start: int, stop: int) -> Sums:
            if spec.name in self._divided or total == 1.0:
                return sums[start:stop]
            return _divided(sums[start:stop], total)

        if spec.dtype.name == sums.dtype.name and (spec.name in self._divided or total == 1.0):
            return Stored(spec, sums.view(np.uint8))
        return Averaged(spec, means, buffer)

    def _add_some(self, name: str, event: SliceEvent, pieces: Sequence[Piece]) -> None:
        sums = self.array(name)
        values = np.zeros_like(sums[: event.count])
        with naming(event.spec.name), np.errstate(over="ignore"):
            event.codec.accumulate(event.payload, event.offset, values, 1.0)
        for start, stop, weight in pieces:
            piece = values[start - event.offset : stop - event.offset]
            piece *= weight
            sums[start:stop] += piece
            _check_finite(name, start, sums[start:stop])


def _divided(sums: Sums, total: float) -> Sums:
    if sums.dtype == np.float32:
        single = scratch("divided fp32", sums.size, np.float32)
        return np.divide(sums, total, out=single)
    double = scratch("divided fp64", sums.size, np.float64)
    return np.divide(sums, total, out=double)


def _check_finite(name: str, offset: int, sums: Sums) -> None:
    """Finite values and a finite weight may still overflow, and one Inf would spoil the model for all."""
    if not all_finite(sums):  # which finds the slice still in the cache
        raise NonFiniteValues(
            f"{name!r}: values from element {offset} on leave the range of {sums.dtype} when summed"
        )
