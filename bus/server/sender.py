"""Bytes of files onto a connection, without passing through this process's memory.

Strategy: aiohttp writes the head of the response; when it has left, the bytes of the body go from the file to
the socket inside the kernel (sendfile), on a duplicate of the connection's descriptor, so that the event
loop's own transport is not disturbed. A worker thread verifies what was stored and sends it, window by
window, for as long as the reader takes it, and of a message that is being followed, for as long as there is
more. A reader who stops reading holds no memory of this process, and no thread: the loop waits until the
socket takes more.

What is to be encrypted cannot stay in the kernel: it passes through the thread's buffer (`tls_connection`).
"""

from __future__ import annotations

import asyncio
import fcntl
import select
import socket
import struct
import termios
from functools import partial
from types import TracebackType
from typing import Protocol, Self

from aiohttp import web

from tensorbus.bus.broker.readers import Reader
from tensorbus.errors import StoreDamaged, TransferStalled

from .body_socket import BodySocket, borrow
from .movers import MOVERS, Turn

_MAX_STEP = 4 << 20
"""Bytes a call: the kernel's largest socket buffer by default, so more would not be taken at once."""


class Meter(Protocol):
    """Hears how many bytes went out."""

    def sent(self, count: int) -> None: ...


def _sendable(reader: Reader, position: int) -> int:
    """Up to where bytes may be sent now; ``position`` when there are none (yet). Blocks."""
    end = reader.end
    if end is not None and position >= end:
        return position
    there = reader.ahead(position)
    return there if end is None else min(there, end)


class SocketSender:
    """Sends on one connection; use as a context manager after the response was prepared."""

    def __init__(self, request: web.Request, idle_timeout: float, meter: Meter) -> None:
        self._request = request
        self._idle_timeout = idle_timeout
        self._meter = meter
        self._socket: BodySocket | None = None
        self._poll = select.poll()
        # Of a chunked body: what comes before the next bytes, and the end of the chunk that is under way.
        self._head = b""
        self._until = -1

    async def __aenter__(self) -> Self:
        transport = self._transport()
        transport.set_write_buffer_limits(high=0)
        await self._request.writer.drain()
        if transport.get_write_buffer_size():
            raise ConnectionResetError("the connection closed before its body was sent")
        self._socket = borrow(transport, to_read=False)
        self._poll.register(self._socket, select.POLLOUT)
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

    async def send(self, data: bytes | memoryview) -> None:
        """Send ``data`` on the event loop. Raises as ``send_frames``."""
        left = memoryview(data)
        while left:
            try:
                count = self._open().send(left)
            except BlockingIOError:
                await self._writable()
                continue
            left = left[count:]
        await self._flush()

    async def send_frames(self, reader: Reader, *, chunked: bool) -> None:
        """Send everything that ``reader`` gives; ``chunked`` says that it is of unknown length.

        Raises:
            TransferStalled: the receiver took nothing for the idle time-out.
            StoreDamaged: what is stored is not what was published, or shorter.
            MessageAborted: the publisher of a message that is being followed gave up.
            OSError: the connection broke.
        """
        if reader.source.remote is not None:
            await self._send_fetched(reader, chunked=chunked)
            return
        while (span := await reader.span()) is not None:
            if reader.fd is None:
                await self._send_body(reader, *span, chunked=chunked)
                continue
            before = reader.position
            self._transport()
            with self._open().alone():
                full = await MOVERS.run(partial(self._push, reader, reader.fd, chunked))
            self._meter.sent(reader.position - before)
            if full:
                await self._writable()
            await self._flush()
        if chunked and self._until >= 0:
            await self.send(b"\r\n")

    async def _send_fetched(self, reader: Reader, *, chunked: bool) -> None:
        """What is on another machine comes through this process's memory, a chunk at a time."""
        async for chunk in reader:
            if chunked:
                await self.send(self._chunk_head(len(chunk)))
                self._until = reader.position
            await self.send(chunk)
            self._meter.sent(len(chunk))
        if chunked and self._until >= 0:
            await self.send(b"\r\n")

    async def _send_body(self, reader: Reader, start: int, count: int, *, chunked: bool) -> None:
        """What lies in memory, which is small."""
        body = memoryview(reader.source.body or b"")[start : start + count]
        if chunked:
            await self.send(self._chunk_head(count))
        await self.send(body)
        self._until = start + count
        self._meter.sent(count)
        reader.advance(count)

    def _chunk_head(self, count: int) -> bytes:
        """Ends the chunk before, if there was one, and begins the next."""
        return b"%s%x\r\n" % (b"" if self._until < 0 else b"\r\n", count)

    def _push(self, reader: Reader, file: int, chunked: bool, turn: Turn) -> bool:
        """In a worker thread: send what is there; whether there may be more but the socket is full."""
        target = self._open()
        while not turn.over:
            position = reader.position
            try:
                if self._head:
                    self._head = self._head[target.send(self._head, more=True) :]
                    continue
                if position >= self._until:
                    until = _sendable(reader, position)
                    if until == position:
                        target.flush()
                        if reader.end is None and reader.grown(position, turn.patience / 1000):
                            continue
                        return False
                    if chunked:
                        self._head = self._chunk_head(until - position)
                    self._until = until
                    continue
                most = min(self._until - position, _MAX_STEP)
                count = target.send_file(file, position, most, turn.buffer)
            except BlockingIOError:
                if not self._poll.poll(turn.patience):
                    return True
                continue
            if not count:
                raise StoreDamaged(f"the file of the message ends at byte {position}, before {self._until}")
            reader.advance(count)
        return False

    async def _flush(self) -> None:
        """See that what was sent is under way: while nothing more is there, nobody else would."""
        while True:
            try:
                return self._open().flush()
            except BlockingIOError:
                await self._writable()

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

    def _open(self) -> BodySocket:
        if self._socket is None:
            raise RuntimeError("use the sender in `async with`")
        return self._socket

    def _transport(self) -> asyncio.Transport:
        transport = self._request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the reader closed the connection")
        return transport
