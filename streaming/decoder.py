"""Frames to containers: what a subscriber does.

Strategy. The decoder follows a `MessageChecker`, which has accepted each frame before. When an item is
declared, its dtype and codec are looked up, and the size that the manifest claims is held against the size of
the message before a sink makes room for it. A slice is then decoded straight into the memory that the sink
gives, or handed out undecoded to whoever folds it into something.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from tensorbus.codecs import registry
from tensorbus.codecs.base import Quantizer, Sink
from tensorbus.codecs.item import ItemSpec
from tensorbus.errors import LimitExceeded, ManifestMismatch, PayloadMismatch

from .frames import Frame, Kind
from .headers import Envelope
from .sequence import MessageChecker
from .specs import naming, to_spec


@dataclass(frozen=True, slots=True)
class SliceEvent:
    """One slice, still encoded.

    Attributes:
        index: position of the item in the manifest.
        spec: the item.
        offset, count: the slice, in elements of the flat item.
        payload: valid until the parser is asked for the next frame.
        quantizer: decodes or accumulates the payload.
    """

    index: int
    spec: ItemSpec
    offset: int
    count: int
    payload: memoryview
    quantizer: Quantizer


class ContainerDecoder:
    """Turns the frames of one message into slices, and into a container if there is a sink for it.

    Args:
        checker: has accepted each frame before it comes here.
        make_sink: called once with the open frame's envelope; None to only get the slices.
        size: bytes of the message where the transport knows them; the manifest may not claim more.
    """

    def __init__(
        self,
        checker: MessageChecker,
        make_sink: Callable[[Envelope], Sink] | None = None,
        *,
        size: int | None = None,
    ) -> None:
        self._checker = checker
        self._make_sink = make_sink
        self._size = size
        self._sink: Sink | None = None
        self._specs: list[ItemSpec] = []
        self._quantizers: list[Quantizer] = []
        self._original = 0
        self._claimed = 0

    @property
    def specs(self) -> list[ItemSpec]:
        """The items declared so far."""
        return self._specs

    def accept(self, frame: Frame) -> SliceEvent | None:
        """Decode the next frame; the slice that it holds, if it is one.

        Raises:
            UnsupportedDtype, UnknownCodec, InvalidSpecification, ManifestMismatch: naming the item declared.
            PayloadMismatch, CodecError: naming the item whose slice cannot be decoded.
            LimitExceeded: the items do not fit in memory.
            StorageError: the sink cannot write.
        """
        if frame.kind == Kind.OPEN and self._make_sink:
            self._sink = self._make_sink(self._checker.envelope)
        elif frame.kind == Kind.MANIFEST:
            # Where the number of items is known, a sink hears of none before all have been judged.
            if self._checker.envelope.items is None or self._checker.declared:
                self._declare()
        elif frame.kind == Kind.SLICE:
            return self._slice(frame)
        return None

    def finish(self) -> object:
        """The message is complete: what the sink made of it, or None without a sink.

        Raises:
            TruncatedFrames: it is not.
            ManifestMismatch, StorageError: from the sink.
        """
        self._checker.finish()
        return self._sink.finish() if self._sink else None

    def abort(self) -> None:
        """The message failed half-way; the sink gives up what it took."""
        if self._sink:
            self._sink.abort()

    def _declare(self) -> None:
        first = len(self._specs)
        for entry in self._checker.entries[first:]:
            spec = to_spec(entry)
            with naming(spec.name):
                self._quantizers.append(self._quantizer(spec))
            self._specs.append(spec)
            self._original += 0 if spec.view else spec.nbytes
        self._check_size()
        if self._sink:
            for spec in self._specs[first:]:
                with naming(spec.name):
                    _begin(self._sink, spec)

    def _quantizer(self, spec: ItemSpec) -> Quantizer:
        quantizer = registry.quantizer(spec.codec)
        if not quantizer.accepts(spec.dtype):
            raise ManifestMismatch(f"codec {quantizer.name} is not for {spec.dtype}")
        if quantizer.fixed_size and not spec.view:
            self._claimed += quantizer.encoded_size(spec.count, spec.dtype)
        return quantizer

    def _check_size(self) -> None:
        envelope = self._checker.envelope
        if envelope.original_bytes is not None and self._original > envelope.original_bytes:
            raise ManifestMismatch(
                f"the items take {self._original} bytes, the message announced {envelope.original_bytes}"
            )
        for size in envelope.wire_bytes, self._size:
            if size is not None and self._claimed > size:
                raise ManifestMismatch(f"the items need {self._claimed} bytes, the message has only {size}")

    def _slice(self, frame: Frame) -> SliceEvent:
        # The checker has judged the header: the cast only tells the type checker so.
        index, offset, count = (cast(int, frame.header[key]) for key in ("i", "o", "c"))
        spec, quantizer = self._specs[index], self._quantizers[index]
        payload = frame.payload
        with naming(spec.name):
            expected = quantizer.encoded_size(count, spec.dtype)
            if quantizer.fixed_size and len(payload) != expected:
                raise PayloadMismatch(
                    f"{len(payload)} bytes of payload for {count} elements of {spec.dtype} "
                    f"under {quantizer.name}, expected {expected}"
                )
            if self._sink:
                out = self._sink.buffer(spec, offset, count)
                quantizer.decode(payload, spec.dtype, out)
                self._sink.commit(spec, offset, count)
        return SliceEvent(index, spec, offset, count, payload, quantizer)


def _begin(sink: Sink, spec: ItemSpec) -> None:
    try:
        sink.begin(spec)
    except MemoryError:
        raise LimitExceeded(f"its {spec.nbytes} bytes do not fit in memory") from None
