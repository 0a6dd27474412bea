"""Decoded: the slice of an update, or of a model, that is at hand: encoded, and decoded where it is read.

A slice of an update is *whole* (values), a *change* from the base, or the *same* as the base (empty).

Strategy. A slice of many small codes stands for eight times as much memory. So only a window of it is decoded
at a time, into memory that is used again: as much as is cut from the payload cheaply, or all of a slice that
cannot be cut. It is kept in the dtype that it decodes to, mostly the tensor's own, and widened piece by piece
where it is read. Slices are read in the order of their elements, so each window is decoded once.
"""

from __future__ import annotations

from enum import Enum

import numpy as np
import numpy.typing as npt

from tensorbus.aggregator.result_items import precision
from tensorbus.codecs.base import Accumulator, SliceCodec
from tensorbus.codecs.dtypes import DTYPES, DType
from tensorbus.codecs.floats import Bytes, widen
from tensorbus.codecs.scratch import PIECE, pieces
from tensorbus.codecs.values import convert
from tensorbus.errors import NonFiniteValues
from tensorbus.streaming.decoder import SliceEvent
from tensorbus.streaming.specs import naming

FLOAT32 = DTYPES["float32"]

WINDOW = PIECE // 2
"""Elements that are decoded at a time, where the codec lets them: 128 KiB of float32."""


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
        self._event: SliceEvent | None = None
        self._codec: SliceCodec | None = None
        self._dtype = FLOAT32
        self._adds = False
        self._step = WINDOW
        self._window = (0, 0)
        self._memory: Bytes = np.empty(0, np.uint8)

    def hold_model(self, event: SliceEvent) -> None:
        """Take a slice of a model, whose values are read as they stand."""
        self._hold(event, Form.WHOLE, event.codec, event.spec.dtype)

    def hold_update(self, event: SliceEvent) -> None:
        """Take a slice of an update, for which no base need be at hand."""
        codec = event.codec
        if codec.base is None:
            self._hold(event, Form.WHOLE, codec, event.spec.dtype)
        elif not codec.needs_base(event.payload):
            # It came whole all the same: to decode it would ask for the base, to add it up does not.
            self._hold(event, Form.WHOLE, codec, precision(event.spec), adds=True)
        elif not event.payload:
            self._hold(event, Form.SAME, codec, event.spec.dtype)
        else:
            change = codec.change()
            self._hold(event, Form.CHANGE, change, change.dtype)

    def release(self) -> None:
        """Let go of the payload, which is not valid for longer; ``start`` and ``stop`` stay."""
        self._event = self._codec = None
        self._window = (0, 0)

    def require_finite(self) -> None:
        """Decode all of the slice, and refuse NaN and Inf.

        Raises:
            NonFiniteValues: the slice holds some; names the tensor.
            As ``SliceCodec.decode``.
        """
        if self.form is Form.SAME or self._event is None:
            return
        for start in range(self.start, self.stop, self._step):
            first, last = self._decode(start)
            if self._dtype.kind != "float":
                continue
            for begin, end in pieces(last - first):
                if not np.isfinite(self._widened(begin, end)).all():
                    what = "change" if self.form is Form.CHANGE else "update"
                    raise NonFiniteValues(f"item {self._event.spec.name!r}: the {what} holds NaN or Inf")

    def read(self, start: int, stop: int, out: Accumulator) -> None:
        """Write elements ``start`` to ``stop``, all within the slice, to ``out``; not of a SAME one.

        Raises as ``SliceCodec.decode``.
        """
        at = start
        while at < stop:
            first, last = self._decode(at)
            end = min(stop, last, at + PIECE)
            self._copy(at - first, end - first, out[at - start : end - start])
            at = end

    def _hold(
        self, event: SliceEvent, form: Form, codec: SliceCodec, dtype: DType, *, adds: bool = False
    ) -> None:
        self.start, self.stop = event.offset, event.offset + event.count
        self.form = form
        self._event, self._codec, self._dtype, self._adds = event, codec, dtype, adds
        grain = codec.grain
        self._step = max(1, WINDOW // grain) * grain if grain else event.count
        self._window = (0, 0)

    def _decode(self, element: int) -> tuple[int, int]:
        """The bounds of the window that has this element; it is decoded if it is not at hand."""
        event, codec = self._event, self._codec
        assert event is not None and codec is not None, "a slice is read before the next is asked for"
        first, last = self._window
        if first <= element < last:
            return first, last
        begin = (element - self.start) // self._step * self._step
        end = min(event.count, begin + self._step)
        first, last = self.start + begin, self.start + end
        room = self._room(end - begin)
        with naming(event.spec.name):
            cut = codec.grain and end - begin < event.count
            payload = codec.cut(event.payload, event.count, begin, end) if cut else event.payload
            if self._adds:
                sums: Accumulator = room.view(np.dtype(self._dtype.name))
                sums.fill(0)
                codec.accumulate(payload, first, sums, 1.0)
            else:
                codec.decode(payload, first, room.data)
        self._window = first, last
        return first, last

    def _room(self, count: int) -> Bytes:
        nbytes = count * self._dtype.itemsize
        if self._memory.size < nbytes:
            self._memory = np.empty(nbytes, np.uint8)
        self._window = (0, 0)
        return self._memory[:nbytes]

    def _copy(self, first: int, last: int, out: Accumulator) -> None:
        if self._dtype.name in ("float16", "bfloat16") and out.dtype == np.float32:
            convert(self._part(first, last), self._dtype, out.view(np.uint8), FLOAT32)
        else:
            np.copyto(out, self._widened(first, last), casting="unsafe")

    def _part(self, first: int, last: int) -> Bytes:
        return self._memory[first * self._dtype.itemsize : last * self._dtype.itemsize]

    def _widened(self, first: int, last: int) -> npt.NDArray[np.generic]:
        """At most ``PIECE`` elements in a dtype that numpy has."""
        part = self._part(first, last)
        if self._dtype.name in ("float16", "bfloat16"):
            return widen(part, self._dtype)
        return part.view(np.dtype(self._dtype.name))
