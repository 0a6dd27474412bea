"""Decoded: the slice of an update, or of a model, that is at hand, in memory that is used again.

A slice of an update is *whole* (values), a *change* from the base, or the *same* as the base (empty). It is
kept in the dtype that it decodes to, mostly the tensor's own, and widened piece by piece where it is read.
"""

from __future__ import annotations

from enum import Enum

import numpy as np
import numpy.typing as npt

from tensorbus.aggregator.result_items import precision
from tensorbus.codecs.base import Accumulator
from tensorbus.codecs.dtypes import DTYPES, DType
from tensorbus.codecs.floats import Bytes, widen
from tensorbus.codecs.scratch import pieces
from tensorbus.codecs.values import convert
from tensorbus.errors import NonFiniteValues
from tensorbus.streaming.decoder import SliceEvent
from tensorbus.streaming.specs import naming

FLOAT32 = DTYPES["float32"]


class Form(Enum):
    """What a slice of an update says."""

    WHOLE = "values"
    CHANGE = "change"
    SAME = "same"


class Decoded:
    """For one update at a time; the slices come in the order of their elements.

    Attributes:
        start, stop: the slice, in elements of the flat tensor.
        form: what it says.
    """

    def __init__(self) -> None:
        self.start = self.stop = 0
        self.form = Form.WHOLE
        self._dtype = FLOAT32
        self._memory: Bytes = np.empty(0, np.uint8)

    def decode_model(self, event: SliceEvent) -> None:
        """Take a slice of a model, decoded as it stands. Raises as ``SliceCodec.decode``."""
        self._place(event)
        self.form = Form.WHOLE
        with naming(event.spec.name):
            event.codec.decode(event.payload, event.offset, self._room(event.spec.dtype, event.count).data)

    def decode_update(self, event: SliceEvent) -> None:
        """Take a slice of an update, for which no base need be at hand. Raises as ``SliceCodec.decode``."""
        codec = event.codec
        self._place(event)
        with naming(event.spec.name):
            if codec.base is None:
                self.form = Form.WHOLE
                codec.decode(event.payload, event.offset, self._room(event.spec.dtype, event.count).data)
            elif not codec.needs_base(event.payload):
                # It came whole all the same: to decode it would ask for the base, to add it up does not.
                self.form = Form.WHOLE
                room = self._room(precision(event.spec), event.count)
                sums: Accumulator = room.view(np.dtype(self._dtype.name))
                sums.fill(0)
                codec.accumulate(event.payload, event.offset, sums, 1.0)
            elif not event.payload:
                self.form = Form.SAME
            else:
                self.form = Form.CHANGE
                change = codec.change()
                change.decode(event.payload, event.offset, self._room(change.dtype, event.count).data)

    def require_finite(self, name: str) -> None:
        """Refuse NaN and Inf.

        Raises:
            NonFiniteValues: the slice holds some; names the tensor.
        """
        if self.form is Form.SAME or self._dtype.kind != "float":
            return
        for start, stop in pieces(self.stop - self.start):
            if not np.isfinite(self._widened(start, stop)).all():
                what = "change" if self.form is Form.CHANGE else "update"
                raise NonFiniteValues(f"item {name!r}: the {what} holds NaN or Inf")

    def read(self, start: int, stop: int, out: Accumulator) -> None:
        """Write elements ``start`` to ``stop``, all within the slice, to ``out``; not of a SAME one."""
        first, last = start - self.start, stop - self.start
        if self._dtype.name in ("float16", "bfloat16") and out.dtype == np.float32:
            convert(self._part(first, last), self._dtype, out.view(np.uint8), FLOAT32)
        else:
            np.copyto(out, self._widened(first, last), casting="unsafe")

    def _place(self, event: SliceEvent) -> None:
        self.start, self.stop = event.offset, event.offset + event.count

    def _room(self, dtype: DType, count: int) -> Bytes:
        self._dtype = dtype
        nbytes = count * dtype.itemsize
        if self._memory.size < nbytes:
            self._memory = np.empty(nbytes, np.uint8)
        return self._memory[:nbytes]

    def _part(self, first: int, last: int) -> Bytes:
        return self._memory[first * self._dtype.itemsize : last * self._dtype.itemsize]

    def _widened(self, first: int, last: int) -> npt.NDArray[np.generic]:
        """At most ``PIECE`` elements in a dtype that numpy has."""
        part = self._part(first, last)
        if self._dtype.name in ("float16", "bfloat16"):
            return widen(part, self._dtype)
        return part.view(np.dtype(self._dtype.name))
