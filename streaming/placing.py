"""Placer: decodes slices to where a sink wants them, in this machine's memory or on a device."""

from __future__ import annotations

from tensorbus.codecs.base import Sink, SliceCodec
from tensorbus.codecs.devices import DeviceDecoder
from tensorbus.codecs.item import ItemSpec
from tensorbus.errors import LimitExceeded


class Placer:
    """Fills one sink; for one thread at a time."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._devices = DeviceDecoder()

    def begin(self, spec: ItemSpec) -> None:
        """An item is about to arrive.

        Raises:
            LimitExceeded: it does not fit in memory.
            As the sink's.
        """
        try:
            self._sink.begin(spec)
        except MemoryError:
            raise LimitExceeded(f"its {spec.nbytes} bytes do not fit in memory") from None

    def place(self, codec: SliceCodec, spec: ItemSpec, offset: int, count: int, payload: memoryview) -> None:
        """Decode a slice; ``payload`` may be overwritten afterwards. Raises as ``SliceCodec.decode``."""
        target = self._sink.device_buffer(spec, offset, count)
        if target is not None and self._devices.decode(codec, payload, target):
            return
        codec.decode(payload, offset, self._sink.buffer(spec, offset, count))
        self._sink.commit(spec, offset, count)

    def finish(self) -> object:
        """All items are complete: the container. Raises as the sink's."""
        self._devices.settle()
        return self._sink.finish()

    def abort(self) -> None:
        """The message failed half-way; the sink gives up what it took."""
        try:
            self._devices.settle()
        finally:
            self._sink.abort()
