"""How items are cut: at multiples of the quantizer's blocksize, so that a frame holds the slice whole."""

from __future__ import annotations

from bisect import bisect_right

from tensorbus.codecs.base import Quantizer
from tensorbus.codecs.item import ItemSpec
from tensorbus.errors import CodecError

from .frames import PRELUDE
from .headers import SliceHeader
from .packing import pack

SOURCE_BYTES = 8 << 20
"""Original bytes of a slice at most: what a source has to read, and a sink to hold, at a time."""


def slice_header(index: int, spec: ItemSpec, offset: int, count: int) -> bytes:
    """The packed header of a slice frame."""
    return pack(SliceHeader(index, spec.name, spec.dtype.name, spec.codec, offset, count).to_map())


def slice_elements(index: int, spec: ItemSpec, quantizer: Quantizer, frame_bytes: int) -> int:
    """Elements of each slice of an item but its last, so that no frame takes more than ``frame_bytes``.

    Raises:
        CodecError: a frame cannot hold even one block.
    """
    head = PRELUDE.size + len(slice_header(index, spec, spec.count, spec.count))
    room = frame_bytes - head
    block = quantizer.blocksize
    most = max(1, SOURCE_BYTES // (block * spec.dtype.itemsize))
    blocks = bisect_right(
        range(1, most + 1), room, key=lambda blocks: quantizer.encoded_size(blocks * block, spec.dtype)
    )
    if blocks == 0:
        raise CodecError(
            f"item {spec.name!r}: a block of {block} elements of {spec.dtype} under {quantizer.name} "
            f"does not fit in a frame of {frame_bytes} bytes"
        )
    return blocks * block


def slice_bounds(count: int, elements: int) -> list[tuple[int, int]]:
    """Offset and count of each slice of ``count`` elements."""
    return [(offset, min(elements, count - offset)) for offset in range(0, count, elements)]
