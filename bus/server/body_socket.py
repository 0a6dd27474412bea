"""What threads move a body through: a duplicate of a connection's socket, or one that encrypts, too."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from aiohttp import web

from .tls_connection import TlsConnection

_MSG_MORE: int = getattr(socket, "MSG_MORE", 0)


class BodySocket(Protocol):
    """A socket that does not block: BlockingIOError says that the peer gives, or takes, nothing now."""

    def fileno(self) -> int: ...

    def setsockopt(self, level: int, option: int, value: bytes, /) -> None: ...

    def alone(self) -> AbstractContextManager[None]:
        """On the event loop, around a thread's use: the loop leaves the connection alone meanwhile."""
        ...

    def recv_into(self, view: memoryview, /) -> int:
        """At least one byte; 0 at the end of the stream."""
        ...

    def send(self, data: bytes | memoryview, /, *, more: bool = False) -> int:
        """How many bytes were taken; ``more`` is about to follow."""
        ...

    def send_file(self, file: int, position: int, count: int, buffer: memoryview, /) -> int:
        """Send up to ``count`` bytes of a file; 0 if it ends at ``position``. ``buffer`` may be used."""
        ...

    def flush(self) -> None:
        """See that what was taken is under way."""
        ...

    def close(self) -> None: ...


class PlainSocket:
    """Not encrypted: files go from the kernel to the kernel."""

    def __init__(self, endpoint: socket.socket) -> None:
        self._endpoint = endpoint
        self.fileno = endpoint.fileno
        self.setsockopt = endpoint.setsockopt
        self.recv_into = endpoint.recv_into
        self.close = endpoint.close

    def alone(self) -> AbstractContextManager[None]:
        """The kernel keeps the bytes of two users apart."""
        return nullcontext()

    def send(self, data: bytes | memoryview, *, more: bool = False) -> int:
        """As `BodySocket.send`."""
        return self._endpoint.send(data, _MSG_MORE if more else 0)

    def send_file(self, file: int, position: int, count: int, buffer: memoryview) -> int:
        """As `BodySocket.send_file`."""
        return os.sendfile(self._endpoint.fileno(), file, position, count)

    def flush(self) -> None:
        """The kernel has everything."""


def can_borrow(request: web.Request) -> bool:
    """Whether the connection of ``request`` is one that `borrow` knows."""
    transport = request.transport
    if transport is None or transport.get_extra_info("socket") is None:
        return False
    return isinstance(transport, TlsConnection) or transport.get_extra_info("sslcontext") is None


def borrow(transport: asyncio.Transport, *, to_read: bool) -> BodySocket:
    """The connection of ``transport`` for one body; to be closed.

    Args:
        to_read: the event loop does not read meanwhile. Otherwise only while ``alone`` is held.
    """
    if isinstance(transport, TlsConnection):
        return transport.lend(to_read=to_read)
    return PlainSocket(duplicate(transport))


def duplicate(transport: asyncio.BaseTransport) -> socket.socket:
    """Of a transport's socket; does not block."""
    endpoint = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
    endpoint.setblocking(False)
    return endpoint
