"""Containers to frames: what a publisher does. The way back is in ``decoder.py``.

Strategy. All that can be known without reading a value is settled first, by arithmetic: the codec of each
item, how it is cut, and so the exact size of the message. Frames are then made one at a time, on demand. Each
encoded slice lies in a buffer that was asked for just before, and that belongs to the frame until its sender
gives it back. Values that are sent as they are and lie in memory in order are not copied at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from tensorbus.codecs.base import Quantizer
from tensorbus.codecs.item import Item, ItemSpec
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.errors import CodecError, InvalidName, LimitExceeded

from .decoder import ContainerDecoder, SliceEvent
from .entries import check_item_name, parse_entry
from .frames import FRAME_BYTES, PRELUDE, Kind, encode_frame, encode_head
from .headers import Envelope, HeaderValue
from .limits import DEFAULT_LIMITS
from .packing import pack, pack_array
from .slicing import slice_bounds, slice_elements, slice_header
from .sources import Source
from .specs import naming, to_entry
from .tally import Tally

__all__ = ["ContainerDecoder", "ContainerEncoder", "EncodedFrame", "SliceEvent"]

_NOTHING = memoryview(b"")


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """A frame to be sent: ``head``, then ``payload``.

    Attributes:
        head: prelude and header.
        payload: bytes; a part of ``buffer``, or of the container itself.
        buffer: what was acquired for it and is to be given back once it is sent; None if nothing was.
        item: name of the item that it is a slice of, or None.
        original_bytes: of that item that it stands for.
    """

    head: bytes
    payload: memoryview = _NOTHING
    buffer: memoryview | None = None
    item: str | None = None
    original_bytes: int = 0

    def __len__(self) -> int:
        return len(self.head) + len(self.payload)


@dataclass(frozen=True, slots=True)
class _Plan:
    """How one item is sent."""

    index: int
    item: Item
    spec: ItemSpec
    quantizer: Quantizer
    elements: int

    def bounds(self) -> list[tuple[int, int]]:
        return [] if self.spec.view else slice_bounds(self.spec.count, self.elements)

    def head_bytes(self, offset: int, count: int) -> int:
        return PRELUDE.size + len(slice_header(self.index, self.spec, offset, count))

    def wire_bytes(self) -> int:
        """Of all its slices together."""
        return sum(
            self.head_bytes(offset, count) + self.quantizer.encoded_size(count, self.spec.dtype)
            for offset, count in self.bounds()
        )


class ContainerEncoder:
    """Makes the frames of one message from the items of a source.

    Args:
        source: what is published; it is read while ``frames`` runs, and closed by the caller.
        pipeline: which quantizer each item gets.
        headers: the message's headers.
        frame_bytes: size of the largest frame, head and payload.

    Attributes:
        entries: the manifest.
        original_bytes: size of the values as they are, those that share storage counted once.
        wire_bytes: exact size of the message; None if a codec's output size depends on the values.
        clipped: number of values clipped so far, by item; complete after the last frame.

    Raises:
        InvalidName, InvalidRequest, LimitExceeded, UnsupportedDtype: a name, header or size is not legal.
    """

    def __init__(
        self,
        source: Source,
        pipeline: Pipeline,
        headers: Mapping[str, HeaderValue],
        *,
        frame_bytes: int = FRAME_BYTES,
    ) -> None:
        self._plans = _plan(source, pipeline, frame_bytes)
        self.entries = [plan.spec for plan in self._plans]
        self.original_bytes = sum(spec.nbytes for spec in self.entries if not spec.view)
        self.clipped: dict[str, int] = {}
        self._manifest = list(_manifest_frames(self.entries, frame_bytes))
        envelope = Envelope(
            headers=headers,
            container=source.kind,
            pipeline=pipeline.to_json(),
            metadata=source.metadata,
            items=len(self.entries),
            original_bytes=self.original_bytes,
        )
        self.envelope = self._sized(envelope)
        self.wire_bytes = self.envelope.wire_bytes

    def frames(self, acquire: Callable[[], memoryview]) -> Iterator[EncodedFrame]:
        """The frames in order; blocks while it reads and encodes, so it belongs in a worker thread.

        Args:
            acquire: gives a writable buffer of at least ``frame_bytes``; called for each encoded slice.

        Raises:
            NonFiniteValues, CodecError, StorageError: naming the item.
        """
        self.clipped = {}
        tally = Tally()
        opening = EncodedFrame(encode_frame(Kind.OPEN, self.envelope.to_map()))
        tally.add_head(Kind.OPEN, opening.head)
        yield opening
        for frame in self._manifest:
            tally.add_head(Kind.MANIFEST, frame.head, len(frame.payload))
            yield frame
        for plan in self._plans:
            for offset, count in plan.bounds():
                frame = self._slice(plan, offset, count, acquire)
                tally.add_head(Kind.SLICE, frame.head, len(frame.payload))
                yield frame
        yield EncodedFrame(tally.close(len(self.entries), self.original_bytes, sum(self.clipped.values())))

    def _slice(self, plan: _Plan, offset: int, count: int, acquire: Callable[[], memoryview]) -> EncodedFrame:
        spec = plan.spec
        buffer: memoryview | None = None
        with naming(spec.name):
            if plan.quantizer.name != "none":
                buffer = acquire()
                payload = self._encode(plan, offset, count, buffer)
            elif plan.item.stable:
                payload = plan.item.read(offset, count).cast("B")
            else:
                buffer = acquire()
                payload = buffer[: count * spec.dtype.itemsize]
                plan.item.read_into(offset, count, payload)
            expected = plan.quantizer.encoded_size(count, spec.dtype)
            if len(payload) > expected or (plan.quantizer.fixed_size and len(payload) != expected):
                raise CodecError(f"{len(payload)} bytes of payload for {count} elements, expected {expected}")
        head = encode_head(Kind.SLICE, slice_header(plan.index, spec, offset, count), payload)
        return EncodedFrame(head, payload, buffer, spec.name, count * spec.dtype.itemsize)

    def _encode(self, plan: _Plan, offset: int, count: int, buffer: memoryview) -> memoryview:
        spec = plan.spec
        source = plan.item.read(offset, count).cast("B")
        if len(source) != count * spec.dtype.itemsize:
            raise CodecError(f"{len(source)} bytes were read for {count} elements of {spec.dtype}")
        encoded = plan.quantizer.encode(source, spec.dtype, buffer)
        if encoded.clipped:
            self.clipped[spec.name] = self.clipped.get(spec.name, 0) + encoded.clipped
        return buffer[: encoded.nbytes]

    def _sized(self, envelope: Envelope) -> Envelope:
        """``envelope`` with the size of the message, of which it is itself a part."""
        if not all(plan.quantizer.fixed_size for plan in self._plans):
            return envelope
        rest = sum(len(frame) for frame in self._manifest) + sum(plan.wire_bytes() for plan in self._plans)
        rest += len(Tally().close(0, 0, 0))
        total = 0
        # A larger number may take more bytes to write, never fewer: this settles after two or three steps.
        while True:
            sized = replace(envelope, wire_bytes=total)
            size = len(encode_frame(Kind.OPEN, sized.to_map())) + rest
            if size == total:
                return sized
            total = size


def _plan(source: Source, pipeline: Pipeline, frame_bytes: int) -> list[_Plan]:
    items = source.items()
    if len(items) > DEFAULT_LIMITS.items:
        raise LimitExceeded(f"the container has {len(items)} items, the limit is {DEFAULT_LIMITS.items}")
    plans: list[_Plan] = []
    names: set[str] = set()
    for index, item in enumerate(items):
        name = check_item_name(item.spec.name)
        if name in names:
            raise InvalidName(f"two items are called {name!r}")
        names.add(name)
        quantizer = pipeline.quantizer_for(item.spec)
        spec = replace(item.spec, codec=quantizer.config())
        elements = slice_elements(index, spec, quantizer, frame_bytes)
        plans.append(_Plan(index, item, spec, quantizer, elements))
    return plans


def _manifest_frames(specs: list[ItemSpec], frame_bytes: int) -> Iterator[EncodedFrame]:
    """The manifest, in as many frames as it takes.

    Raises:
        LimitExceeded: it takes more than a receiver accepts, or an item does.
    """
    # The prelude, the header and the array's own length, generously.
    room = frame_bytes - 64
    first, taken, total = 0, 0, 0
    batch: list[bytes] = []
    for spec in specs:
        entry = to_entry(spec).to_map()
        parse_entry(entry)
        packed = pack(entry)
        total += len(packed)
        if batch and taken + len(packed) > room:
            yield _manifest_frame(first, batch)
            first, taken, batch = first + len(batch), 0, []
        batch.append(packed)
        taken += len(packed)
    if total > DEFAULT_LIMITS.manifest:
        raise LimitExceeded(f"the manifest takes {total} bytes, the limit is {DEFAULT_LIMITS.manifest}")
    if batch:
        yield _manifest_frame(first, batch)


def _manifest_frame(first: int, packed: list[bytes]) -> EncodedFrame:
    payload = pack_array(packed)
    return EncodedFrame(encode_frame(Kind.MANIFEST, {"first": first}, payload), memoryview(payload))
