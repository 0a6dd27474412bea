"""Body: the body of an upload as aiohttp wants it, written frame by frame from pooled buffers."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import aiohttp

from .connection import FRAMES, Connection, outlast
from .encoding import Chunk, Encoding
from .progress import ProgressReporter
from .send_queue import unsent_bytes

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter


class Body(aiohttp.Payload):
    """Sends what an `Encoding` makes, one chunk behind it.

    Attributes:
        sent: bytes of the body handed to the connection.
        failure: what went wrong on this side: an item that cannot be encoded, or a callback that raised.
    """

    def __init__(self, connection: Connection, encoding: Encoding, reporter: ProgressReporter) -> None:
        super().__init__(encoding, content_type=FRAMES)
        self._size = encoding.size  # the Content-Length, where it is known
        self._connection = connection
        self._encoding = encoding
        self._reporter = reporter
        self._transport: asyncio.WriteTransport | None = None
        self._steps = 0
        self._settled = False
        self._next: asyncio.Task[Chunk | None] | None = None
        self.sent = 0
        self.failure: Exception | None = None

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Part of aiohttp's interface; a stream has no text."""
        raise TypeError("the body of an upload cannot be read as text")

    def position(self) -> tuple[int, int]:
        """Changes while the upload goes on: the worker makes frames, or bytes reach the broker's machine."""
        return self._steps, self.sent - unsent_bytes(self._transport)

    async def settle(self) -> None:
        """Wait until no thread uses the source or the buffers any more."""
        self._settled = True
        if self._next is not None:
            self._next.cancel()
        await outlast(asyncio.ensure_future(self._end()))

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Called by aiohttp when the broker has said that it wants the body."""
        self._transport = getattr(writer, "transport", None)
        if self._transport is not None:
            # A drained writer then means an empty buffer: the payload's memory may be used again.
            self._transport.set_write_buffer_limits(high=0)
        self._make_next()
        while self._next is not None:
            with self._on_this_side():
                chunk = await self._next
            self._steps += 1
            if chunk is None:
                return
            self._make_next()
            await writer.write(chunk.head)
            self.sent += len(chunk.head)
            if chunk.frame is not None:
                await writer.write(chunk.frame.payload)
                self.sent += len(chunk.frame.payload)
            await writer.drain()
            if chunk.frame is not None:
                self._encoding.release(chunk.frame)
            with self._on_this_side():
                await self._reporter.report(chunk.progress)

    @contextmanager
    def _on_this_side(self) -> Generator[None]:
        """Remember what goes wrong within: aiohttp will report it as a broken connection."""
        try:
            yield
        except Exception as error:
            self.failure = error
            raise

    async def _end(self) -> None:
        if self._next is not None:
            await asyncio.wait([self._next])
        # Not in a thread of the connection, which may have been closed.
        await asyncio.to_thread(self._encoding.close)

    def _make_next(self) -> None:
        if self._settled:
            raise ConnectionResetError("the upload has been given up")
        self._next = asyncio.create_task(self._connection.in_thread(self._encoding.step))
