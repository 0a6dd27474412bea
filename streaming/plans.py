"""Plans: how each item of a message is sent, and the work that each of its slices is.

A slice of a stable item is read where it lies. Any other is read into a buffer: by the threads that work
ahead, if the item allows that several do so, each into its own; if not, by the thread that asks, in order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from tensorbus.codecs.base import Encoded, SliceCodec
from tensorbus.codecs.chain import QuantizerCodec, bind
from tensorbus.codecs.context import CodecContext
from tensorbus.codecs.devices import DeviceEncoder, device_encoder
from tensorbus.codecs.item import Item, ItemSpec
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.codecs.privacy import Privacy, SquaresCodec
from tensorbus.errors import CodecError, InvalidName, InvalidSpecification, LimitExceeded

from . import checksum
from .buffers import SliceBuffer
from .entries import check_item_name
from .frames import PRELUDE, Kind, encode_head
from .limits import DEFAULT_LIMITS
from .slicing import check_payload, slice_bounds, slice_elements, slice_header
from .sources import Source
from .specs import naming

_NOWHERE = memoryview(bytearray())

SMALL = 64 << 10
"""Bytes; a slice of no more is made sooner than handed to another thread."""


@dataclass(frozen=True, slots=True)
class MadeSlice:
    """An encoded slice.

    Attributes:
        head: of its frame.
        payload: a part of ``buffer``, or of the container itself.
        buffer: as in `SliceJob`.
        spec: the item.
        original_bytes: that it stands for.
        clipped: how many of its values were clipped.
    """

    head: bytes
    payload: memoryview
    buffer: memoryview | None
    spec: ItemSpec
    original_bytes: int
    clipped: int


@dataclass(frozen=True, slots=True)
class ItemPlan:
    """How one item is sent.

    Attributes:
        index: position in the manifest.
        spec: the item as the manifest describes it, with its codec.
        elements: of a slice.
        device: encodes the item where it lies, if that is not this machine's memory.
    """

    index: int
    item: Item
    spec: ItemSpec
    codec: SliceCodec
    elements: int
    device: DeviceEncoder | None

    @property
    def copied(self) -> bool:
        """Whether the payloads are the original bytes."""
        return isinstance(self.codec, QuantizerCodec) and self.codec.copies

    def wire_bytes(self) -> int:
        """Of all its slices together."""
        return sum(
            PRELUDE.size
            + len(slice_header(self.index, self.spec, offset, count))
            + self.codec.encoded_size(count)
            for offset, count in self.bounds()
        )

    def jobs(self, acquire: Callable[[], memoryview], first: int = 0) -> Iterator[SliceJob]:
        """The work that its slices are, in order, from number ``first`` on; ``acquire`` gives the buffer for
        each that needs one."""
        direct = self.copied and self.item.stable
        for offset, count in self.bounds()[first:]:
            yield SliceJob(self, offset, count, None if direct else acquire())

    def checksums(self) -> Iterator[int]:
        """CRC-32C of the values, slice by slice."""
        for offset, count in self.bounds():
            yield checksum.extend(0, self.item.read(offset, count).cast("B"))

    def bounds(self) -> list[tuple[int, int]]:
        """First element and number of elements of each slice."""
        return [] if self.spec.view else slice_bounds(self.spec.count, self.elements)


@dataclass(frozen=True, slots=True)
class SliceJob:
    """One slice that is to be made.

    Attributes:
        buffer: where its payload goes; None if it is sent from where it lies.
    """

    plan: ItemPlan
    offset: int
    count: int
    buffer: memoryview | None

    @property
    def original_bytes(self) -> int:
        """Of the values."""
        return self.count * self.plan.spec.dtype.itemsize

    @property
    def detachable(self) -> bool:
        """As `ahead.Job`. What is sent from where it lies is only checksummed, which takes no longer than to
        hand it to a thread and back."""
        item = self.plan.item
        return self.buffer is not None and self.original_bytes > SMALL and (item.stable or item.concurrent)

    def run(self, detached: bool) -> MadeSlice:
        """Read and encode it.

        Raises:
            NonFiniteValues, CodecError, StorageError: naming the item.
        """
        plan, buffer = self.plan, self.buffer
        with naming(plan.spec.name):
            clipped = 0
            if buffer is None:
                payload = plan.item.read(self.offset, self.count).cast("B")
            elif plan.copied:
                payload = buffer[: self.original_bytes]
                plan.item.read_into(self.offset, self.count, payload)
            else:
                encoded = self._encode(buffer, detached)
                payload, clipped = buffer[: encoded.nbytes], encoded.clipped
            check_payload(plan.codec, self.count, len(payload))
        header = slice_header(plan.index, plan.spec, self.offset, self.count)
        head = encode_head(Kind.SLICE, header, payload)
        return MadeSlice(head, payload, buffer, plan.spec, self.original_bytes, clipped)

    def _encode(self, buffer: memoryview, detached: bool) -> Encoded:
        plan = self.plan
        if plan.device is not None:
            return plan.device.encode(self.offset, self.count, buffer)
        if detached and not plan.item.stable:
            source = _kept.buffer.take(self.original_bytes)
            plan.item.read_into(self.offset, self.count, source)
        else:
            source = plan.item.read(self.offset, self.count).cast("B")
        if len(source) != self.original_bytes:
            raise CodecError(f"{len(source)} bytes were read for {self.count} elements of {plan.spec.dtype}")
        return plan.codec.encode(source, self.offset, buffer)


class _Kept(threading.local):
    """What values are read into, one buffer for each thread that works ahead."""

    def __init__(self) -> None:
        self.buffer = SliceBuffer()


_kept = _Kept()


def plan_items(source: Source, pipeline: Pipeline, frame_bytes: int, context: CodecContext) -> list[ItemPlan]:
    """The plans of all items of ``source``, in its order.

    Raises:
        InvalidName, LimitExceeded, UnsupportedDtype, CodecError, MissingBase: naming what cannot be sent.
    """
    items = _sent(source.items(), pipeline.skip)
    if len(items) > DEFAULT_LIMITS.items:
        raise LimitExceeded(f"the container has {len(items)} items, the limit is {DEFAULT_LIMITS.items}")
    plans: list[ItemPlan] = []
    names: set[str] = set()
    for index, item in enumerate(items):
        name = check_item_name(item.spec.name)
        if name in names:
            raise InvalidName(f"two items are called {name!r}")
        names.add(name)
        codec = bind(pipeline, item.spec, context)
        spec = replace(item.spec, codec=codec.config())
        elements = slice_elements(index, spec, codec, frame_bytes)
        plans.append(ItemPlan(index, item, spec, codec, elements, device_encoder(item, codec)))
    return plans


def measure(plans: Sequence[ItemPlan], pipeline: Pipeline, context: CodecContext, privacy: Privacy) -> None:
    """Tell ``privacy`` the norm of what is to be clipped; reads all values, while no `SliceJob` runs.

    Raises:
        NonFiniteValues, StorageError: naming the item.
    """
    squares: list[float] = []
    before = [stage for stage in pipeline.stages if stage.against_base]
    for plan in plans:
        counter = SquaresCodec()
        codec: SliceCodec = counter
        for stage in reversed(before):
            codec = stage.wrap(codec, plan.item.spec, context)
        for offset, count in plan.bounds():
            with naming(plan.spec.name):
                codec.encode(plan.item.read(offset, count).cast("B"), offset, _NOWHERE)
        squares += counter.squares
    privacy.measure(squares)


def _sent(items: Sequence[Item], skip: Sequence[str]) -> Sequence[Item]:
    """The items but for those that are skipped, under any name of their storage.

    Raises:
        InvalidSpecification: nothing is left.
    """
    if not skip:
        return items
    storages: set[str] = set()
    for item in items:
        if any(fnmatchcase(item.spec.name, pattern) for pattern in skip):
            storages.add(item.spec.name if item.spec.view is None else item.spec.view.of)
    left = [
        item
        for item in items
        if (item.spec.name if item.spec.view is None else item.spec.view.of) not in storages
    ]
    if items and not left:
        raise InvalidSpecification(f"skip leaves nothing to send: {', '.join(skip):.200}")
    return left
