"""Containers as frames in memory, for frameworks that carry the bytes themselves.

A message's frames are cut into one part for each item, in the items' order: so a framework may treat an
encoded model as it does a plain one, tensor by tensor, and neither end needs room for the whole message
besides. What comes before the first item's slices is in its part, and what comes after the last one's in
that.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing

from tensorbus.bus.client.item_sink import DecodedItem, ItemSink
from tensorbus.codecs.base import Sink
from tensorbus.codecs.context import NO_CONTEXT, CodecContext
from tensorbus.codecs.item import Item
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.errors import FrameError, InvalidSpecification
from tensorbus.streaming.container import ContainerEncoder
from tensorbus.streaming.decoder import ContainerDecoder
from tensorbus.streaming.frames import FRAME_BYTES, Frame, FrameParser
from tensorbus.streaming.headers import Envelope
from tensorbus.streaming.sequence import MessageChecker
from tensorbus.streaming.sinks import serializer_of
from tensorbus.streaming.sources import ItemSource

THREADS = 2
"""That encode."""


class Parts:
    """One container, encoded part by part.

    Args:
        kind: of the container, such as ``numpy`` or ``torch``.
        items: its items; at least one.
        context: the base of the pipeline's stages, if they have one.

    Attributes:
        digest: of the message, in hex; None before the last part is made.

    Raises:
        CodecError, InvalidSpecification, …: an item cannot be encoded like this.
    """

    def __init__(
        self, kind: str, items: Sequence[Item], pipeline: Pipeline, context: CodecContext = NO_CONTEXT
    ) -> None:
        if not items:
            raise FrameError("a container without items has no parts")
        self._names = [item.spec.name for item in items]
        self._encoder = ContainerEncoder(ItemSource(kind, items), pipeline, {}, context=context)

    @property
    def digest(self) -> str | None:
        return self._encoder.digest

    def __iter__(self) -> Generator[tuple[str, bytes]]:
        """Name and part of each item, in the items' order; empty for one that has nothing to send.

        Raises:
            NonFiniteValues, CodecError: naming the item.
        """
        free: list[memoryview] = []
        names = iter(self._names)
        name = next(names)
        made: list[bytes] = []

        def acquire() -> memoryview:
            return free.pop() if free else self._encoder.new_buffer(FRAME_BYTES)

        with closing(self._encoder.frames(acquire, THREADS)) as frames:
            for frame in frames:
                while frame.item is not None and frame.item != name:
                    yield name, b"".join(made)
                    name, made = next(names), []
                made += (frame.head, bytes(frame.payload))
                if frame.buffer is not None:
                    free.append(frame.buffer)
        # The close frame belongs to the last item, and the items before that have nothing to send.
        rest = list(names)
        if rest:
            close = made[-2:]
            yield name, b"".join(made[:-2])
            yield from ((one, b"") for one in rest[:-1])
            yield rest[-1], b"".join(close)
        else:
            yield name, b"".join(made)


class Reader:
    """Decodes the parts of one container.

    Args:
        size: bytes of all parts; the manifest may not claim more than that can hold.
        context: the bases that the values may be encoded against.

    Attributes:
        digest: of the message, in hex, once all has been read.
    """

    def __init__(self, size: int, context: CodecContext = NO_CONTEXT) -> None:
        self._checker = MessageChecker()
        self._sink = ItemSink(lambda: serializer_of(self._checker.envelope.container).sink())
        self._decoder = ContainerDecoder(self._checker, self._make_sink, size=size, context=context)
        self.digest: str | None = None

    @property
    def envelope(self) -> Envelope:
        """What the message says of itself, once its first part has been read."""
        return self._checker.envelope

    def items(self, parts: Iterable[bytes | memoryview]) -> Generator[DecodedItem]:
        """The items as their parts come, a view right after the item in which it lies.

        Raises:
            FrameError (and its kinds), CodecError: the parts are damaged, not all there, or in another order.
            MissingBase: they are encoded against a base that is not in the context.
        """
        parser = FrameParser()
        try:
            for part in parts:
                for frame in parser.feed(part):
                    self._accept(frame)
                    yield from self._ready()
            parser.finish()
            self._decoder.finish()
        except BaseException:
            self._decoder.abort()
            raise
        yield from self._ready()
        self.digest = self._checker.totals.digest.hex()

    def _accept(self, frame: Frame) -> None:
        self._checker.accept(frame)
        self._decoder.accept(frame)

    def _ready(self) -> Generator[DecodedItem]:
        while self._sink.ready:
            yield self._sink.ready.popleft()

    def _make_sink(self, envelope: Envelope) -> Sink:
        return self._sink


def pipeline_of(
    codec: str | Mapping[str, object] | Pipeline | None,
    keep: Iterable[str] = (),
    *,
    based: bool,
    where: str,
) -> Pipeline:
    """The pipeline that somebody asks for, which has to be one that works here.

    Args:
        based: whether there is a base to send changes from.
        where: for the error.

    Raises:
        InvalidSpecification, UnknownCodec: it is malformed, or needs what there is not.
    """
    pipeline = Pipeline.parse(codec, keep)
    for stage in pipeline.stages:
        if stage.name == "feedback":
            raise InvalidSpecification(
                f"{where}: feedback needs a place for what it keeps, and there is none"
            )
        if stage.against_base and not based:
            raise InvalidSpecification(
                f"{where}: {stage.name} needs a base that both ends hold, and there is none"
            )
    return pipeline
