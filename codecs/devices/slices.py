"""Slices of one item, encoded on its device; slices of a message, decoded on the device of each target."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import numpy as np

from tensorbus.codecs.base import Encoded, SliceCodec
from tensorbus.codecs.item import Item
from tensorbus.errors import CodecError, PayloadMismatch

from .base import DeviceCodec
from .lookup import device_codec

if TYPE_CHECKING:
    import torch

    from .lanes import Lane


def device_encoder(item: Item, codec: SliceCodec) -> DeviceEncoder | None:
    """What encodes ``item`` where it lies; None if its values lie in this memory, or have to come here."""
    found = device_codec(codec, item.device) if item.device is not None else None
    return None if found is None else DeviceEncoder(item, found)


def buffer_maker(items: Iterable[Item]) -> Callable[[int], memoryview]:
    """What makes buffers for slices of ``items``: pinned memory where one of them lies on a GPU."""
    if any(item.device is not None and item.device.startswith("cuda") for item in items):
        from .lanes import pinned

        return pinned
    return lambda nbytes: memoryview(bytearray(nbytes))


class DeviceEncoder:
    """Encodes the slices of ``item``, which lies on a device; different slices by several threads at once."""

    def __init__(self, item: Item, codec: DeviceCodec) -> None:
        self._item = item
        self._codec = codec

    def encode(self, offset: int, count: int, out: memoryview) -> Encoded:
        """Encode elements ``offset`` to ``offset + count`` into ``out``; as ``SliceCodec.encode``.

        Raises:
            NonFiniteValues: a value is NaN or Inf (the caller adds the item's name).
            CodecError: the device failed, such as for want of memory.
        """
        from .lanes import own_lane

        nbytes = sum(self._codec.sizes(count))
        with _told_as_codec_error(self._item.device):
            values = cast("torch.Tensor", self._item.device_slice(offset, count))
            lane = own_lane(values.device)
            with lane.encoding():
                coded = self._codec.encode(values)
            least, greatest = lane.fetch(coded, np.frombuffer(out, np.uint8)[:nbytes])
            return Encoded(nbytes, self._codec.clipped(values, least, greatest))


class DeviceDecoder:
    """Decodes the payloads of one message into tensors on devices; one call at a time."""

    def __init__(self) -> None:
        self._lanes: dict[torch.device, Lane] = {}

    def decode(self, codec: SliceCodec, payload: memoryview, out: object) -> bool:
        """Decode ``payload`` into the flat tensor ``out``; its values are there once ``settle`` has returned.

        ``payload`` may be overwritten as soon as this returns. False, and nothing done, if the codec does not
        work on that device.

        Raises:
            PayloadMismatch: the payload's size is not what the elements demand.
            CodecError: the device failed.
        """
        target = cast("torch.Tensor", out)
        device = target.device
        found = device_codec(codec, str(device))
        if found is None:
            return False
        sizes = found.sizes(target.numel())
        if payload.nbytes != sum(sizes):
            raise PayloadMismatch(
                f"a payload of {payload.nbytes} bytes; {target.numel()} elements take {sum(sizes)}"
            )
        parts = np.split(np.frombuffer(payload, np.uint8), np.cumsum(sizes)[:-1])
        with _told_as_codec_error(device), self._lane(device).decoding(parts) as on_device:
            found.decode(on_device, target)
        return True

    def settle(self) -> None:
        """Wait until everything that was decoded is in its place; also before a target is given up.

        Raises:
            CodecError: a device failed.
        """
        for device, lane in self._lanes.items():
            with _told_as_codec_error(device):
                lane.settle()

    def _lane(self, device: torch.device) -> Lane:
        from .lanes import new_lane

        if device not in self._lanes:
            self._lanes[device] = new_lane(device)
        return self._lanes[device]


@contextmanager
def _told_as_codec_error(device: object) -> Generator[None]:
    """What goes wrong on a device is a RuntimeError to torch."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise CodecError(f"{device} failed: {reason}") from error
