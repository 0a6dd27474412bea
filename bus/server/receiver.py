"""A large request body from its connection into an upload, through a fixed number of buffers.

Strategy: aiohttp would read ahead for each connection on its own, some hundred kilobytes that add up with the
number of publishers. So once the head of a request of known length has been parsed, aiohttp's transport is
paused, what it had read is passed on, and the rest is received on a duplicate of the connection's descriptor.
A buffer is taken only when bytes are there, and goes back when they are in the file: a silent publisher holds
none. While one buffer is checked and written by a worker thread, the next one fills.

aiohttp does not learn where the body ended, so the connection is of no use for another request.
"""

from __future__ import annotations

import asyncio
import os
import socket
from types import TracebackType
from typing import Self

from aiohttp import web

from tensorbus.bus.broker.uploads import Upload
from tensorbus.errors import TransferStalled, TruncatedFrames

from .buffers import Buffers
from .context import context

LARGE = 1 << 20
"""Bytes of a body from which a connection of its own is worth while."""


async def receive(request: web.Request, upload: Upload, length: int) -> None:
    """Write the ``length`` bytes of the body into ``upload``.

    Raises:
        TransferStalled: not a byte came for the idle time-out.
        TruncatedFrames: the publisher closed its side before the end.
        ConnectionError: the connection broke.
        and what ``Upload.write`` raises.
    """
    here = context(request)
    left = length
    async with SocketReceiver(request, here.settings.idle_timeout) as source:
        while chunk := source.early():
            here.counters.bytes_in += len(chunk)
            left -= len(chunk)
            await upload.write(memoryview(chunk))
        writing = asyncio.create_task(asyncio.sleep(0))
        try:
            while left:
                buffer, count = await _fill(source, here.buffers, left)
                if not count:
                    raise TruncatedFrames(f"the body ended after {length - left} of {length} bytes")
                here.counters.bytes_in += count
                left -= count
                try:
                    await writing
                except BaseException:
                    here.buffers.release(buffer)
                    raise
                writing = asyncio.create_task(_write(upload, here.buffers, buffer, count))
            await writing
        finally:
            writing.cancel()
            await asyncio.wait([writing])


async def _fill(source: SocketReceiver, buffers: Buffers, left: int) -> tuple[bytearray, int]:
    """A buffer and how many bytes are in it; none at the end of the stream."""
    while True:
        await source.readable()
        buffer = await buffers.acquire()
        try:
            return buffer, source.receive_into(memoryview(buffer)[:left])
        except BlockingIOError:
            buffers.release(buffer)
        except BaseException:
            buffers.release(buffer)
            raise


async def _write(upload: Upload, buffers: Buffers, buffer: bytearray, count: int) -> None:
    try:
        await upload.write(memoryview(buffer)[:count])
    except BaseException:
        # A worker thread may still look at it.
        buffers.discard()
        raise
    buffers.release(buffer)


class SocketReceiver:
    """Receives on the connection of a request, past aiohttp; an async context manager."""

    def __init__(self, request: web.Request, idle_timeout: float) -> None:
        self._request = request
        self._idle_timeout = idle_timeout
        self._socket: socket.socket | None = None
        self._ended = False

    async def __aenter__(self) -> Self:
        self._socket = socket.socket(fileno=os.dup(self._pause().get_extra_info("socket").fileno()))
        self._socket.setblocking(False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open().close()
        transport = self._request.transport
        # aiohttp has to see the end of the connection, and to drain what a refused sender still sends. Only
        # if the sender closed its side already, that would close the connection before the answer is out.
        if transport is not None and not transport.is_closing() and not self._ended:
            transport.resume_reading()

    def early(self) -> bytes:
        """The next part of what aiohttp had received together with the head of the request."""
        chunk = self._request.content.read_nowait()
        # Emptying the buffer makes aiohttp resume the transport.
        self._pause()
        return chunk

    async def readable(self) -> None:
        """Wait until there are bytes, or the end of the stream; raises TransferStalled."""
        loop = asyncio.get_running_loop()
        descriptor = self._open().fileno()
        ready = asyncio.Event()
        loop.add_reader(descriptor, ready.set)
        try:
            async with asyncio.timeout(self._idle_timeout):
                await ready.wait()
        except TimeoutError:
            idle = self._idle_timeout
            raise TransferStalled(
                f"no byte of the body arrived for {idle:g} s; what had arrived was dropped"
            ) from None
        finally:
            loop.remove_reader(descriptor)

    def receive_into(self, view: memoryview) -> int:
        """Fill ``view`` with what is there, without waiting; 0 at the end of the stream."""
        count = self._open().recv_into(view)
        self._ended = not count
        return count

    def _open(self) -> socket.socket:
        assert self._socket is not None, "use the receiver in `async with`"
        return self._socket

    def _pause(self) -> asyncio.Transport:
        transport = self._request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the publisher closed the connection")
        transport.pause_reading()
        return transport
