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

from tensorbus.codecs.base import Sink, SliceCodec
from tensorbus.codecs.chain import check_base, codec_of
from tensorbus.codecs.context import NO_CONTEXT, CodecContext
from tensorbus.codecs.item import ItemSpec
from tensorbus.errors import ManifestMismatch

from .frames import Frame, Kind
from .headers import Envelope
from .placing import Placer
from .sequence import MessageChecker
from .slicing import check_slice
from .specs import naming, to_spec


@dataclass(frozen=True, slots=True)
class SliceEvent:
    """One slice, still encoded.

    Attributes:
        index: position of the item in the manifest.
        spec: the item.
        offset, count: the slice, in elements of the flat item.
        payload: valid until the parser is asked for the next frame.
        codec: decodes or accumulates the payload; an empty one says that the slice equals the base.
    """

    index: int
    spec: ItemSpec
    offset: int
    count: int
    payload: memoryview
    codec: SliceCodec


class ContainerDecoder:
    """Turns the frames of one message into slices, and into a container if there is a sink for it.

    Args:
        checker: has accepted each frame before it comes here.
        make_sink: called once with the open frame's envelope; None to only get the slices.
        size: bytes of the message where the transport knows them; the manifest may not claim more.
        context: the bases that items may be encoded against.
    """

    def __init__(
        self,
        checker: MessageChecker,
        make_sink: Callable[[Envelope], Sink] | None = None,
        *,
        size: int | None = None,
        context: CodecContext = NO_CONTEXT,
    ) -> None:
        self._checker = checker
        self._context = context
        self._make_sink = make_sink
        self._size = size
        self._placer: Placer | None = None
        self._specs: list[ItemSpec] = []
        self._codecs: list[SliceCodec] = []
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
            MissingBase: naming the item declared that a sink is to get, and whose base is not at hand.
            PayloadMismatch, CodecError: naming the item whose slice cannot be decoded.
            LimitExceeded: the items do not fit in memory.
            StorageError: the sink cannot write.
        """
        if frame.kind == Kind.OPEN and self._make_sink:
            self._placer = Placer(self._make_sink(self._checker.envelope))
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
        return self._placer.finish() if self._placer else None

    def abort(self) -> None:
        """The message failed half-way; the sink gives up what it took."""
        if self._placer:
            self._placer.abort()

    def _declare(self) -> None:
        first = len(self._specs)
        for entry in self._checker.entries[first:]:
            spec = to_spec(entry)
            with naming(spec.name):
                self._codecs.append(self._codec(spec))
            self._specs.append(spec)
            self._original += 0 if spec.view else spec.nbytes
        self._check_size()
        if self._placer:
            for spec in self._specs[first:]:
                with naming(spec.name):
                    self._placer.begin(spec)

    def _codec(self, spec: ItemSpec) -> SliceCodec:
        codec = codec_of(spec, self._context)
        if codec.fixed_size and not spec.view:
            self._claimed += codec.encoded_size(spec.count)
        if self._placer:
            # Now, and not when some of the container has been overwritten already.
            check_base(codec, spec, self._context)
        return codec

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
        spec, codec = self._specs[index], self._codecs[index]
        payload = frame.payload
        with naming(spec.name):
            check_slice(codec, count, len(payload))
            if self._placer:
                self._placer.place(codec, spec, offset, count, payload)
        return SliceEvent(index, spec, offset, count, payload, codec)
