"""Body: the body of an upload as aiohttp wants it, written frame by frame from pooled buffers.

Strategy. A large body is written to the socket by the thread that makes its frames, for as long as there is
room in the socket; one that is encrypted, chunked or small goes through aiohttp, on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import aiohttp

from .connection import FRAMES, Connection
from .encoding import Chunk, Encoding
from .progress import STEP, Progress, ProgressReporter
from .raw_upload import RawUpload
from .send_queue import unsent_bytes
from .workers import outlast

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter

T = TypeVar("T")

LARGE = 1 << 20
"""Bytes of a body that are worth the way past the HTTP library."""


class Body(aiohttp.Payload):
    """Sends what an `Encoding` makes, one chunk behind it.

    Attributes:
        failure: what went wrong on this side: an item that cannot be encoded, or a callback that raised.
    """

    def __init__(self, connection: Connection, encoding: Encoding, reporter: ProgressReporter) -> None:
        super().__init__(encoding, content_type=FRAMES)
        self._size = encoding.left  # the Content-Length, where it is known
        self._connection = connection
        self._encoding = encoding
        self._reporter = reporter
        self._transport: asyncio.WriteTransport | None = None
        self._steps = 0
        self._settled = False
        self._next: asyncio.Task[Chunk | None] | None = None
        self._at_work: asyncio.Future[Any] | None = None
        self._written = 0
        self._upload: RawUpload | None = None
        self.failure: Exception | None = None

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Part of aiohttp's interface; a stream has no text."""
        raise TypeError("the body of an upload cannot be read as text")

    def position(self) -> tuple[int, int]:
        """Changes while the upload goes on: the worker makes frames, or bytes reach the broker's machine."""
        return self._steps, self.sent - unsent_bytes(self._transport)

    @property
    def sent(self) -> int:
        """Bytes of the body handed to the connection."""
        return self._written + (0 if self._upload is None else self._upload.sent)

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
            # (Under TLS, asyncio takes 0 for full even when nothing waits, and would never let it drain.)
            encrypted = self._transport.get_extra_info("sslcontext") is not None
            self._transport.set_write_buffer_limits(high=1 if encrypted else 0)
        # The head of the request may wait for the first bytes of the body.
        await self._write_next(writer)
        if (self._size or 0) >= LARGE and (upload := await RawUpload.of(writer)) is not None:
            with upload:
                await self._write_past(upload)
            return
        while self._next is not None:
            await self._write_next(writer)

    async def _write_next(self, writer: AbstractStreamWriter) -> None:
        """Write a chunk while the one after it is made."""
        if self._next is None:
            self._make_next()
        assert self._next is not None
        with self._on_this_side():
            chunk = await self._next
        self._next = None
        self._steps += 1
        if chunk is None:
            return
        self._make_next()
        if chunk.head:
            await writer.write(chunk.head)
            self._written += len(chunk.head)
        if chunk.payload:
            await writer.write(chunk.payload)
            self._written += len(chunk.payload)
        await writer.drain()
        if chunk.frame is not None:
            self._encoding.release(chunk.frame)
        with self._on_this_side():
            await self._reporter.report(chunk.progress)

    async def _write_past(self, upload: RawUpload) -> None:
        """Make chunks and send them, in one thread, for as long as there is room for them."""
        self._upload = upload
        with self._on_this_side():
            chunk = await self._next if self._next is not None else None
        self._next = None
        enough = STEP if self._reporter.wanted else 64 * STEP
        while chunk is not None:
            chunk, progress = await self._stay(partial(self._make_and_send, upload, chunk, enough))
            with self._on_this_side():
                await self._reporter.report(progress)
            if chunk is not None and not upload.idle:
                await upload.writable()

    async def _stay(self, work: Callable[[], T]) -> T:
        self._at_work = future = asyncio.ensure_future(self._connection.in_thread(work))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            self._settled = True
            with suppress(Exception):
                await outlast(future)
            raise

    def _make_and_send(self, upload: RawUpload, chunk: Chunk, enough: int) -> tuple[Chunk | None, Progress]:
        """In a worker thread, ``chunk`` first: the chunk that is under way then, and how far that got."""
        until = upload.sent + enough
        if upload.idle:
            upload.give(chunk.head, chunk.payload)
        while upload.send(lambda: self._settled):
            if self._settled:
                raise ConnectionResetError("the upload has been given up")
            self._steps += 1
            if chunk.frame is not None:
                self._encoding.release(chunk.frame)
            progress = chunk.progress
            with self._on_this_side():
                following = self._encoding.step()
            if following is None or upload.sent >= until:
                return following, progress
            chunk = following
            upload.give(chunk.head, chunk.payload)
        return chunk, chunk.progress

    @contextmanager
    def _on_this_side(self) -> Generator[None]:
        """Remember what goes wrong within: aiohttp will report it as a broken connection."""
        try:
            yield
        except Exception as error:
            self.failure = error
            raise

    async def _end(self) -> None:
        # aiohttp cancels `write` and does not wait for it.
        for task in (self._next, self._at_work):
            if task is not None:
                await asyncio.wait([task])
        # Not in a thread of the connection, which may have been closed.
        await asyncio.to_thread(self._encoding.close)

    def _make_next(self) -> None:
        if self._settled:
            raise ConnectionResetError("the upload has been given up")
        self._next = asyncio.create_task(self._connection.in_thread(self._encoding.step))
