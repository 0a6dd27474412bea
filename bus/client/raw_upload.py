"""A request's body onto its socket past the HTTP library, from the memory that it lies in; does not wait."""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from aiohttp.abc import AbstractStreamWriter

PATIENCE = 20
"""Milliseconds for which a thread waits for room before it leaves that to the event loop."""


class RawUpload:
    """Sends on the connection of an `AbstractStreamWriter`, whose head has left; a context manager.

    Attributes:
        sent: bytes that the kernel has taken.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.sent = 0
        self._connection = connection
        self._poll = select.poll()
        self._poll.register(connection, select.POLLOUT)
        self._waiting: list[memoryview] = []

    @classmethod
    async def of(cls, writer: AbstractStreamWriter) -> Self | None:
        """None where the body has to pass through the library: it is chunked, encrypted, or not alone."""
        transport: asyncio.WriteTransport | None = getattr(writer, "transport", None)
        if transport is None or getattr(writer, "chunked", True):
            return None
        if transport.get_extra_info("sslcontext") is not None:
            return None
        endpoint = transport.get_extra_info("socket")
        if endpoint is None or not hasattr(socket.socket, "sendmsg"):
            return None
        await writer.drain()
        if transport.get_write_buffer_size():
            return None
        connection = socket.socket(fileno=os.dup(endpoint.fileno()))
        connection.setblocking(False)
        return cls(connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    @property
    def idle(self) -> bool:
        """Whether all that was given has been sent."""
        return not self._waiting

    def give(self, *parts: bytearray | memoryview) -> None:
        """What is to be sent next; it must stay as it is until then."""
        self._waiting += [view for part in parts if (view := memoryview(part).cast("B"))]

    def send(self, stopped: Callable[[], bool]) -> bool:
        """In a worker thread: send what was given; False if there is no room for it. Raises OSError."""
        while self._waiting and not stopped():
            try:
                count = self._connection.sendmsg(self._waiting)
            except BlockingIOError:
                if not self._poll.poll(PATIENCE):
                    return False
                continue
            self.sent += count
            self._waiting = _after(self._waiting, count)
        return True

    async def writable(self) -> None:
        """Wait until there is room."""
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_writer(self._connection, ready.set)
        try:
            await ready.wait()
        finally:
            with suppress(ValueError, OSError):
                loop.remove_writer(self._connection)


def _after(parts: list[memoryview], count: int) -> list[memoryview]:
    """What is left of ``parts`` behind the first ``count`` bytes."""
    for place, part in enumerate(parts):
        if count < len(part):
            return [part[count:], *parts[place + 1 :]]
        count -= len(part)
    return []
