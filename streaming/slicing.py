"""How items are cut: at multiples of the codec's blocksize, so that a frame holds the slice whole."""

from __future__ import annotations

from bisect import bisect_right

from tensorbus.codecs.base import SliceCodec
from tensorbus.codecs.chain import QuantizerCodec
from tensorbus.codecs.item import ItemSpec
from tensorbus.codecs.working import SLICE_ELEMENTS
from tensorbus.errors import CodecError, LimitExceeded, PayloadMismatch

from .frames import PRELUDE
from .headers import SliceHeader
from .packing import pack

SOURCE_BYTES = 8 << 20
"""Original bytes of a slice at most: what a source has to read, and a sink to hold, at a time."""


def slice_header(index: int, spec: ItemSpec, offset: int, count: int) -> bytes:
    """The packed header of a slice frame."""
    return pack(SliceHeader(index, spec.name, spec.dtype.name, spec.codec, offset, count).to_map())


def most_elements(codec: SliceCodec) -> int:
    """Elements of a slice at most; stages hold a whole slice as float32, quantizers work piece by piece."""
    if isinstance(codec, QuantizerCodec):
        return max(1, SOURCE_BYTES // codec.dtype.itemsize)
    return SLICE_ELEMENTS


def slice_elements(index: int, spec: ItemSpec, codec: SliceCodec, frame_bytes: int) -> int:
    """Elements of each slice of an item but its last, so that no frame takes more than ``frame_bytes``.

    Raises:
        CodecError: a frame cannot hold even one block.
    """
    head = PRELUDE.size + len(slice_header(index, spec, spec.count, spec.count))
    room = frame_bytes - head
    block = codec.blocksize
    most = max(1, most_elements(codec) // block)
    needed = -(-spec.count // block)
    if 0 < needed <= most and codec.encoded_size(needed * block) <= room:
        return needed * block  # small, as many items are: one slice, and nothing to search for
    blocks = bisect_right(range(1, most + 1), room, key=lambda blocks: codec.encoded_size(blocks * block))
    if blocks == 0:
        raise CodecError(
            f"item {spec.name!r}: a block of {block} elements of {spec.dtype} under {codec.config()['name']} "
            f"does not fit in a frame of {frame_bytes} bytes"
        )
    return blocks * block


def slice_bounds(count: int, elements: int) -> list[tuple[int, int]]:
    """Offset and count of each slice of ``count`` elements."""
    return [(offset, min(elements, count - offset)) for offset in range(0, count, elements)]


def check_slice(codec: SliceCodec, count: int, payload_bytes: int) -> None:
    """Whether a slice that arrived may be decoded, judged by its size alone.

    Raises:
        LimitExceeded: it claims more elements than a slice of its codec may have.
        PayloadMismatch: as ``check_payload``.
    """
    most = most_elements(codec)
    if codec.fixed_size and isinstance(codec, QuantizerCodec):
        most *= 2  # as large as a payload of the original values may be
    if count > most:
        raise LimitExceeded(f"a slice of {count} elements of {codec.dtype}, the limit is {most}")
    check_payload(codec, count, payload_bytes)


def check_payload(codec: SliceCodec, count: int, payload_bytes: int) -> None:
    """Whether a payload can be that of ``count`` elements.

    Raises:
        PayloadMismatch: it has another size than its codec gives, or is larger than that can be; or it is
            empty, and its codec has no base that the slice could be equal to.
    """
    size = codec.encoded_size(count)
    empty = not payload_bytes and codec.base is not None
    if empty or (payload_bytes == size if codec.fixed_size else 1 <= payload_bytes <= size):
        return
    name = codec.config()["name"]
    raise PayloadMismatch(
        f"{payload_bytes} bytes of payload for {count} elements of {codec.dtype} under {name}, expected "
        + (f"{size}" if codec.fixed_size else f"1 to {size}")
    )
