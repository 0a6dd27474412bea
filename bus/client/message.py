"""Message: one stored message as a client sees it, and the ways to read it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from os import PathLike
from typing import TYPE_CHECKING, cast

from tensorbus.bus import tracing
from tensorbus.bus.messages import HeaderValue, MessageInfo
from tensorbus.codecs.base import Sink
from tensorbus.codecs.context import NO_CONTEXT, CodecContext
from tensorbus.codecs.item import ItemSpec
from tensorbus.errors import NotFound
from tensorbus.streaming.arriving_relay import ArrivingRelay
from tensorbus.streaming.byte_files import BytesFileSink
from tensorbus.streaming.container import SliceEvent
from tensorbus.streaming.entries import Entry
from tensorbus.streaming.files import SafetensorsSink
from tensorbus.streaming.headers import Envelope
from tensorbus.streaming.sinks import open_file_sink, open_sink, serializer_of
from tensorbus.streaming.specs import to_spec

from .bases import Bases
from .connection import READ_BUFFER, Connection
from .downloads import Download
from .frames_file import save_frames
from .held_frames import HeldFrames, Here, entries_of
from .item_file import write_item
from .item_sink import DecodedItem, ItemSink
from .opening import read_envelope
from .passes import ItemPass, MessagePass, Pass
from .progress import ProgressCallback, ProgressReporter
from .reading import Reading

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Link


SLICE_AHEAD = 256 << 10
"""Bytes that may wait in memory, see `Download`, where slices are asked for one by one: perhaps of many
messages side by side."""


class Message:
    """A message at the broker. Each reading method downloads what it needs, and resumes after a cut.

    A message that is still open can be read as well: reading then follows it until it is sealed, and raises
    MessageAborted if its publisher gives up.

    Attributes:
        info: everything the broker says about it.
    """

    def __init__(
        self,
        connection: Connection,
        bases: Bases,
        info: MessageInfo,
        entries: tuple[Entry, ...] | None,
        frames: bytes | None = None,
    ) -> None:
        self.info = info
        self._entries = entries  # None: to be found in the frames, should anybody want to know
        self._frames = frames  # the whole body, if it is here already
        self._connection = connection
        self._bases = bases
        self._manifest: tuple[ItemSpec, ...] | None = None

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Its manifest as it stands on the wire.

        Raises:
            FrameError (and its kinds), …: the frames that came along with a delivery are no message.
        """
        if self._entries is None:
            self._entries = entries_of(self._frames or b"")
        return self._entries

    @property
    def manifest(self) -> tuple[ItemSpec, ...]:
        """Its items in the container's order; of an open message, those declared so far.

        Raises:
            UnsupportedDtype: this release does not know an item's dtype. The message can still be settled.
        """
        if self._manifest is None:
            self._manifest = tuple(map(to_spec, self.entries))
        return self._manifest

    @property
    def id(self) -> str:
        """32 hex digits."""
        return self.info.id

    @property
    def topic(self) -> str:
        """Where it was published."""
        return self.info.topic

    @property
    def headers(self) -> Mapping[str, HeaderValue]:
        """The publisher's headers."""
        return self.info.headers

    def trace_context(self) -> Context | None:
        """OpenTelemetry's context of the span in which it was published, to go on from there.

        None if there was none, or if ``opentelemetry-api`` is not installed.
        """
        return tracing.context_of(self.headers)

    def trace_link(self) -> Link | None:
        """OpenTelemetry's link to that span, for a span that works on many messages. None as above."""
        return tracing.link_of(self.headers)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} of {self.topic}>"

    # --- reading -----------------------------------------------------------------------------------

    async def envelope(self) -> Envelope:
        """What the message says of itself: the kind of container, its pipeline, its metadata.

        Only its beginning is fetched. Raises as `items`.
        """
        frames = self._frames
        return await read_envelope(
            Download(self._connection, self.info) if frames is None else HeldFrames(frames)
        )

    async def items(self, progress: ProgressCallback | None = None) -> AsyncGenerator[DecodedItem]:
        """The decoded items one at a time, in the original dtype and shape; only one is held in memory.

        An item that is a view of another comes right after that one, and shares its storage.

        Raises:
            MissingBase: it is encoded against a base that the client does not have; the error says which.
            FrameError, ChecksumMismatch, CodecError, …: the message cannot be decoded.
            MessageAborted, NotFound, BrokerUnavailable: it cannot be had.
        """
        sinks: list[ItemSink] = []

        def make_sink(envelope: Envelope) -> Sink:
            sinks.append(ItemSink(serializer_of(envelope.container).sink))
            return sinks[0]

        context = await self._context()
        async with aclosing(self._reading(make_sink, progress, context).slices()) as slices:
            async for _ in slices:
                while sinks[0].ready:
                    yield sinks[0].ready.popleft()
        for sink in sinks:
            while sink.ready:
                yield sink.ready.popleft()

    async def slices(self, progress: ProgressCallback | None = None) -> AsyncGenerator[SliceEvent]:
        """The slices as they came, verified but still encoded, for whoever folds them into something.

        Each is valid until the next is asked for; ``event.codec`` decodes or accumulates its payload,
        which belongs in a worker thread. Raises as `items`.
        """
        context = await self._context()
        async with aclosing(self._reading(None, progress, context).slices()) as slices:
            async for event in slices:
                yield event

    async def item_slices(self, name: str) -> AsyncGenerator[SliceEvent]:
        """The slices of one item, as `slices` gives them; nothing else is fetched.

        Raises:
            NotFound: there is no such item, or it is a view and has no slices of its own.
            As `items`.
        """
        spec = self._spec(name)
        if spec.view is not None:
            raise NotFound(f"item {name!r} is a view of {spec.view.of!r}, which has the slices")
        if spec.count == 0:
            return
        over = ItemPass(spec, None, await self._context())
        reading = self._over(over, name, ProgressReporter(None), (None, spec.nbytes), False)
        async with aclosing(reading.slices()) as slices:
            async for event in slices:
                yield event

    async def load(self, into: object | None = None, progress: ProgressCallback | None = None) -> object:
        """The whole container at once.

        Args:
            into: a state_dict, Module or dict of arrays, whose tensors are overwritten in place; it is what
                is returned. If reading fails half-way, its values are undefined.

        Returns:
            A container of the publisher's kind: a state_dict, a dict of numpy arrays, or bytes. A safetensors
            file comes as a state_dict, or as numpy arrays where torch is not installed.

        Raises:
            ManifestMismatch: ``into`` has other names, shapes or dtypes.
            As `items`.
        """
        return await self.decode(lambda envelope: open_sink(envelope, into), progress)

    async def decode(
        self, make_sink: Callable[[Envelope], Sink], progress: ProgressCallback | None = None
    ) -> object:
        """The whole container into a sink of your own; what that makes of it. Raises as `items`.

        Args:
            make_sink: called once, when the message's envelope has come, with it.
        """
        context = await self._context()
        return await self._reading(make_sink, progress, context).run()

    async def save(
        self,
        path: str | PathLike[str],
        *,
        item: str | None = None,
        progress: ProgressCallback | None = None,
    ) -> None:
        """Write the container to a safetensors file, or a byte string to a file as it is, without loading it.

        A message that was made of the folder of a PEFT adapter becomes such a folder at ``path``, unless that
        ends in ``.safetensors``.

        The file appears when it is complete and on stable storage; if anything fails, ``path`` is as before.

        Args:
            item: write only the item of this name, and fetch nothing else.

        Raises:
            UnsupportedContainer: the container holds what a safetensors file cannot.
            StorageError, StorageFull: the file cannot be written.
            NotFound: there is no such item.
            As `items`.
        """
        if item is not None:
            await self._save_item(self._spec(item), path, progress)
            return
        reading = self._reading(
            lambda envelope: open_file_sink(envelope, path), progress, await self._context(), blocking=True
        )
        await reading.run()

    async def save_frames(
        self,
        path: str | PathLike[str],
        progress: ProgressCallback | None = None,
        relay: ArrivingRelay | None = None,
    ) -> None:
        """Write the message to a file as it came, checked but not decoded: what `RelaySource` passes on.

        Args:
            relay: passes it on meanwhile. It is neither sealed nor stopped here.

        Raises as `save`, but for what is wrong with its values.
        """
        await save_frames(self._connection, self.info, path, ProgressReporter(progress), relay)

    async def item(self, name: str, progress: ProgressCallback | None = None) -> DecodedItem:
        """One decoded item; nothing else is fetched.

        Raises:
            NotFound: there is no such item.
            As `items`.
        """
        spec = self._spec(name)
        base = spec if spec.view is None else self._spec(spec.view.of)
        sink = serializer_of(self.info.container).sink()
        for each in (base,) if spec.view is None else (base, spec):
            sink.begin(each)
        values = cast("Mapping[str, object]", await self._read_item(base, sink, progress))
        return DecodedItem(name, spec, values[name])

    # --- how ---------------------------------------------------------------------------------------

    async def _context(self) -> CodecContext:
        """The client's bases, if there is a stage that may want one; of an open message, not all is known."""
        if not self._bases.given:
            return NO_CONTEXT
        if self.info.state == "sealed" and not any("stages" in entry.codec for entry in self.entries):
            return NO_CONTEXT
        return await self._bases.reading()

    def _reading(
        self,
        make_sink: Callable[[Envelope], Sink] | None,
        progress: ProgressCallback | None,
        context: CodecContext,
        blocking: bool = False,
    ) -> Reading:
        info = self.info
        size = info.bytes if info.state == "sealed" else info.wire_bytes
        over = MessagePass(make_sink, size, context)
        return self._over(over, None, ProgressReporter(progress), (size, info.original_bytes), blocking)

    async def _read_item(
        self, spec: ItemSpec, sink: Sink, progress: ProgressCallback | None, blocking: bool = False
    ) -> object:
        over = ItemPass(spec, sink, await self._context())
        reporter = ProgressReporter(progress)
        return await self._over(over, spec.name, reporter, (None, spec.nbytes), blocking).run()

    def _over(
        self,
        over: Pass,
        item: str | None,
        reporter: ProgressReporter,
        totals: tuple[int | None, int | None],
        blocking: bool,
    ) -> Reading:
        """A pass that downloads what it reads, or has it here; ``blocking`` if its sink waits for a disk."""
        if self._frames is None:
            ahead = READ_BUFFER if over.sinks else SLICE_AHEAD
            size = None if item is None else totals[1]
            download = Download(self._connection, self.info, item, size, ahead=ahead)
            return Reading(self._connection, download, over, reporter, *totals)
        threads = self._connection if blocking else Here()
        return Reading(threads, HeldFrames(self._frames, item), over, reporter, *totals)

    async def _save_item(
        self, spec: ItemSpec, path: str | PathLike[str], progress: ProgressCallback | None
    ) -> None:
        sink = BytesFileSink(path) if spec.kind == "bytes" else SafetensorsSink(path)
        if spec.view is None:
            sink.begin(spec)
            await self._read_item(spec, sink, progress, blocking=True)
            return
        # A view has no frames of its own: it is cut out of the item in which it lies.
        found = await self.item(spec.name, progress)
        await self._connection.in_thread(lambda: write_item(serializer_of(self.info.container), found, sink))

    def _spec(self, name: str) -> ItemSpec:
        for spec in self.manifest:
            if spec.name == name:
                return spec
        raise NotFound(f"message {self.id} has no item {name!r}")
