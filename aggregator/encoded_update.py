"""EncodedUpdate: an encoded message that is at hand, in memory or as a file of frames, as reducers read it.

    async with Client(url) as bus:
        …                                       # save the frames of each update: GET /v1/messages/ID/frames
    reducer = ReducerSpec.parse("mean").build(layout, workspace)
    await reducer.reset()
    await reducer.add(EncodedUpdate(Path("a.frames")), contribution, lambda _: None)

So anybody can compute a round's model again from the updates that were stored, and compare.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Sequence
from pathlib import Path

from tensorbus.codecs.context import NO_CONTEXT, CodecContext
from tensorbus.codecs.item import ItemSpec
from tensorbus.errors import NotFound, StorageError
from tensorbus.streaming.decoder import ContainerDecoder, SliceEvent
from tensorbus.streaming.frames import FrameParser
from tensorbus.streaming.sequence import MessageChecker

SMALL = 64 << 10
"""Bytes read from a file at a time where frames are small. Larger ones are read one by one."""


class EncodedUpdate:
    """An `Update` of a whole message body.

    Args:
        body: the frames, or the path of a file of them.
        name: its id, which names it in errors and logs; the path, or "message" where there is none.
        context: the bases that its values may be decoded with.

    Raises:
        StorageError: the file cannot be read.
        FrameError, CodecError: it is no message, or none that can be read here.
    """

    def __init__(
        self, body: bytes | Path, name: str | None = None, context: CodecContext = NO_CONTEXT
    ) -> None:
        self.id = name or (str(body) if isinstance(body, Path) else "message")
        self._body = body
        self._context = context
        self.manifest: Sequence[ItemSpec] = self._declared()

    async def slices(self) -> AsyncGenerator[SliceEvent]:
        """See `Update`."""
        reading = self._read()
        try:
            # A slice is verified where it is asked for, in a thread: it is much work for the event loop.
            while (event := await asyncio.to_thread(next, reading, None)) is not None:
                yield event
        finally:
            reading.close()

    async def item_slices(self, name: str) -> AsyncGenerator[SliceEvent]:
        """See `Update`; the rest is passed over, but read all the same."""
        if not any(spec.name == name and spec.view is None for spec in self.manifest):
            raise NotFound(f"{self.id} has no item {name!r} with slices of its own")
        reading = (event for event in self._read() if event.spec.name == name)
        try:
            while (event := await asyncio.to_thread(next, reading, None)) is not None:
                yield event
        finally:
            reading.close()

    def _declared(self) -> Sequence[ItemSpec]:
        checker = MessageChecker()
        decoder = ContainerDecoder(checker, size=self._size(), context=self._context)
        parser = FrameParser()
        for chunk in self._chunks(parser):
            for frame in parser.feed(chunk):
                checker.accept(frame)
                decoder.accept(frame)
                if checker.declared:
                    return tuple(decoder.specs)
        checker.finish()
        return tuple(decoder.specs)

    def _read(self) -> Generator[SliceEvent]:
        checker = MessageChecker()
        decoder = ContainerDecoder(checker, size=self._size(), context=self._context)
        parser = FrameParser()
        for chunk in self._chunks(parser):
            for frame in parser.feed(chunk):
                checker.accept(frame)
                event = decoder.accept(frame)
                if event is not None:
                    yield event
        parser.finish()
        decoder.finish()

    def _chunks(self, parser: FrameParser) -> Generator[bytes | memoryview]:
        """All bytes; of a file, a large payload is read into the parser's own room."""
        if isinstance(self._body, bytes):
            yield self._body
            return
        try:
            with self._body.open("rb", buffering=0) as file:
                buffer = memoryview(bytearray(SMALL))
                while True:
                    place = parser.place()
                    room = buffer if place is None else place
                    if not (count := file.readinto(room)):
                        return
                    yield room[:count]
        except OSError as error:
            raise StorageError(f"{self._body} cannot be read: {error}") from error

    def _size(self) -> int:
        if isinstance(self._body, bytes):
            return len(self._body)
        try:
            return self._body.stat().st_size
        except OSError as error:
            raise StorageError(f"{self._body} cannot be read: {error}") from error
