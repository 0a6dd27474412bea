"""Bytes of files onto a connection, without passing through this process's memory.

Strategy: aiohttp writes the head of the response; when it has left, the bytes of the body go from the file to
the socket inside the kernel (sendfile), on a duplicate of the connection's descriptor, so that the event
loop's own transport is not disturbed. The loop waits until the socket takes more, and a worker thread makes
the call (it may have to wait for the disk). A reader who stops reading holds no memory of this process, and
no thread.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
import termios
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Protocol, Self

from aiohttp import web

from tensorbus.errors import StoreDamaged, TransferStalled

_MAX_STEP = 4 << 20
"""Bytes a call: the kernel's largest socket buffer by default, so more would not be taken at once."""
_SMALL = 64 << 10
"""Bytes that are sent on the event loop: a hop to a thread and back would cost more."""
_THREADS = ThreadPoolExecutor(max_workers=4, thread_name_prefix="tensorbus-sendfile")
_MSG_MORE: int = getattr(socket, "MSG_MORE", 0)


class Meter(Protocol):
    """Hears how many bytes went out."""

    def sent(self, count: int) -> None: ...


class SocketSender:
    """Sends on one connection; use as a context manager after the response was prepared."""

    def __init__(self, request: web.Request, idle_timeout: float, meter: Meter) -> None:
        self._request = request
        self._idle_timeout = idle_timeout
        self._meter = meter
        self._socket: socket.socket | None = None

    async def __aenter__(self) -> Self:
        transport = self._transport()
        transport.set_write_buffer_limits(high=0)
        await self._request.writer.drain()
        if transport.get_write_buffer_size():
            raise ConnectionResetError("the connection closed before its body was sent")
        self._socket = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        self._socket.setblocking(False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._socket is not None:
            self._socket.close()

    def cut(self, *, at_once: bool = False) -> None:
        """Break the connection, so that the reader cannot take what it has for the whole.

        ``at_once`` drops what the kernel still holds for it, up to a few megabytes.
        """
        if at_once and self._socket is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport = self._request.transport
        if transport is not None:
            transport.abort()

    async def send(self, data: bytes, *, more: bool = False) -> None:
        """Send ``data``; ``more`` says that bytes follow at once."""
        left = memoryview(data)
        while left:
            try:
                count = self._open().send(left, _MSG_MORE if more else 0)
            except BlockingIOError:
                await self._writable()
                continue
            left = left[count:]

    async def send_file(self, file: int, start: int, end: int) -> None:
        """Send bytes ``start`` to ``end`` (exclusive) of the open file descriptor ``file``.

        Raises TransferStalled when the reader takes nothing for the idle time-out, and OSError when the
        connection breaks or the file is shorter than that.
        """
        position = start
        while position < end:
            size = min(end - position, _MAX_STEP)
            try:
                count = await self._sendfile(file, position, size)
            except BlockingIOError:
                await self._writable()
                continue
            if not count:
                raise StoreDamaged(f"the file of the message ends at byte {position}, before byte {end}")
            position += count
            self._meter.sent(count)
            if count < size:
                await self._writable()

    async def _sendfile(self, file: int, position: int, size: int) -> int:
        """One call of sendfile, in a worker thread unless it is small."""
        target = self._open().fileno()
        if size <= _SMALL:
            return os.sendfile(target, file, position, size)
        work = _THREADS.submit(os.sendfile, target, file, position, size)
        waiter = asyncio.wrap_future(work)
        try:
            return await asyncio.shield(waiter)
        except asyncio.CancelledError:
            # Both descriptors will be closed, and their numbers given to others, as soon as this returns: the
            # call must be over by then. It never waits for the peer, so this is short.
            while not work.cancel() and not work.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([waiter])
            raise

    async def _writable(self) -> None:
        """Wait until the kernel takes more bytes.

        Progress is what the reader's machine acknowledged, not what this one could queue: a slow reader may
        need longer than the idle time-out to make room in a socket buffer of several megabytes.
        """
        loop = asyncio.get_running_loop()
        descriptor = self._open().fileno()
        ready = asyncio.Event()
        loop.add_writer(descriptor, ready.set)
        try:
            queued = self._queued()
            while True:
                try:
                    async with asyncio.timeout(self._idle_timeout):
                        await ready.wait()
                    return
                except TimeoutError:
                    before, queued = queued, self._queued()
                    if queued >= before:
                        raise TransferStalled(
                            f"the reader took no byte for {self._idle_timeout:g} s; the download was ended"
                        ) from None
        finally:
            loop.remove_writer(descriptor)

    def _queued(self) -> int:
        """Bytes in the kernel that the peer has not acknowledged (TIOCOUTQ, which Linux calls SIOCOUTQ).

        Always 0 where the system does not tell it of sockets: then only room in the buffer is progress.
        """
        try:
            answer = fcntl.ioctl(self._open().fileno(), termios.TIOCOUTQ, struct.pack("i", 0))
        except OSError:
            return 0
        return struct.unpack("i", answer)[0]

    def _open(self) -> socket.socket:
        if self._socket is None:
            raise RuntimeError("use the sender in `async with`")
        self._transport()
        return self._socket

    def _transport(self) -> asyncio.Transport:
        transport = self._request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the reader closed the connection")
        return transport
