"""What happens to the frames of a download: check each, decode it, and say when all have come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tensorbus.codecs.base import Sink
from tensorbus.codecs.chain import check_base, codec_of
from tensorbus.codecs.context import NO_CONTEXT, CodecContext
from tensorbus.codecs.item import ItemSpec
from tensorbus.errors import FrameSequenceError
from tensorbus.streaming.container import ContainerDecoder, SliceEvent
from tensorbus.streaming.frames import Frame, Kind
from tensorbus.streaming.headers import Envelope, SliceHeader
from tensorbus.streaming.sequence import MessageChecker
from tensorbus.streaming.slicing import check_slice
from tensorbus.streaming.specs import naming


class Pass(Protocol):
    """One pass over frames; runs in a worker thread."""

    @property
    def sinks(self) -> bool:
        """Whether values are decoded as they come; else there are only slices."""
        ...

    @property
    def complete(self) -> bool:
        """Whether the last frame has come."""
        ...

    def accept(self, frame: Frame) -> SliceEvent | None:
        """Check and decode the next frame; the slice that it holds, if it is one."""
        ...

    def finish(self) -> object:
        """All frames have come: what was made of them."""
        ...

    def abort(self) -> None:
        """Something failed: release what was taken."""
        ...


class MessagePass:
    """A whole message.

    Args:
        make_sink: where decoded slices go; None to only have the slices.
        size: bytes of the body, where they are known.
        context: the bases that items may be encoded against.
    """

    def __init__(
        self,
        make_sink: Callable[[Envelope], Sink] | None,
        size: int | None,
        context: CodecContext = NO_CONTEXT,
    ) -> None:
        self.sinks = make_sink is not None
        self._checker = MessageChecker()
        self._decoder = ContainerDecoder(self._checker, make_sink, size=size, context=context)

    @property
    def complete(self) -> bool:
        """Whether the close frame has come."""
        return self._checker.complete

    def accept(self, frame: Frame) -> SliceEvent | None:
        """As `Pass.accept`."""
        self._checker.accept(frame)
        return self._decoder.accept(frame)

    def finish(self) -> object:
        """The container that the sink made."""
        return self._decoder.finish()

    def abort(self) -> None:
        """As `Pass.abort`."""
        self._decoder.abort()


class ItemPass:
    """The slices of one item, which come without the rest of the message.

    Args:
        spec: the item's entry in the manifest; no view.
        sink: where its values go, which has been told of the item already; None to only have the slices.
        context: the bases that it may be encoded against.

    Raises:
        CodecError: naming the item, whose codec is not known here or whose base is not at hand.
    """

    def __init__(self, spec: ItemSpec, sink: Sink | None, context: CodecContext = NO_CONTEXT) -> None:
        self.sinks = sink is not None
        self._spec = spec
        self._sink = sink
        self._element = 0
        with naming(spec.name):
            self._codec = codec_of(spec, context)
            if sink is not None:
                check_base(self._codec, spec, context)

    @property
    def complete(self) -> bool:
        """Whether every element has come."""
        return self._element == self._spec.count

    def accept(self, frame: Frame) -> SliceEvent | None:
        """As `Pass.accept`.

        Raises:
            FrameSequenceError: the frame is not the item's next slice.
        """
        spec = self._spec
        header = SliceHeader.parse(frame.header) if frame.kind == Kind.SLICE else None
        if (
            header is None
            or (header.name, header.dtype, header.codec) != (spec.name, spec.dtype.name, spec.codec)
            or header.offset != self._element
            or not 1 <= header.count <= spec.count - self._element
        ):
            raise FrameSequenceError(
                f"expected the slice of {spec.name!r} that starts at element {self._element}"
            )
        with naming(spec.name):
            check_slice(self._codec, header.count, len(frame.payload))
            if self._sink is not None:
                out = self._sink.buffer(spec, header.offset, header.count)
                self._codec.decode(frame.payload, header.offset, out)
                self._sink.commit(spec, header.offset, header.count)
        self._element += header.count
        return SliceEvent(header.index, spec, header.offset, header.count, frame.payload, self._codec)

    def finish(self) -> object:
        """The container that the sink made; None without a sink."""
        return None if self._sink is None else self._sink.finish()

    def abort(self) -> None:
        """As `Pass.abort`."""
        if self._sink is not None:
            self._sink.abort()
