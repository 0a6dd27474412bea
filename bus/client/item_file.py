"""One item that is in memory into a file."""

from __future__ import annotations

from tensorbus.codecs.base import Serializer, Sink

from .item_sink import DecodedItem


def write_item(serializer: Serializer, found: DecodedItem, sink: Sink) -> None:
    """Write one value that is in memory into a file."""
    item = serializer.items({found.name: found.value})[0]
    spec = item.spec
    try:
        sink.begin(spec)
        step = max(1, (1 << 20) // max(1, spec.dtype.itemsize))
        for offset in range(0, spec.count, step):
            count = min(step, spec.count - offset)
            item.read_into(offset, count, sink.buffer(spec, offset, count))
            sink.commit(spec, offset, count)
        sink.finish()
    except BaseException:
        sink.abort()
        raise
