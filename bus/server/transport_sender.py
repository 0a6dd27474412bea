"""Bytes onto a connection by way of aiohttp: what is made piece by piece, or for unknown connections."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from aiohttp import web

from tensorbus.bus.broker.readers import Reader
from tensorbus.errors import TransferStalled

from .sender import Meter

_HIGH = 512 << 10
"""Bytes that wait in this process for a reader, at most one chunk more."""


class TransportSender:
    """Writes what a Reader gives through aiohttp; the stand-in for `SocketSender`, with the same methods."""

    def __init__(
        self, request: web.Request, response: web.StreamResponse, idle_timeout: float, meter: Meter
    ) -> None:
        self._request = request
        self._response = response
        self._idle_timeout = idle_timeout
        self._meter = meter

    async def __aenter__(self) -> Self:
        if self._request.transport is not None:
            self._request.transport.set_write_buffer_limits(high=_HIGH)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def cut(self, *, at_once: bool = False) -> None:
        """Break the connection, so that the reader cannot take what it has for the whole."""
        if self._request.transport is not None:
            self._request.transport.abort()

    async def send_frames(self, reader: Reader, *, chunked: bool) -> None:
        """Send everything that ``reader`` gives. Raises as `SocketSender.send_frames`."""
        async for chunk in reader:
            # A copy: the transport may keep what it cannot encrypt yet, and the reader uses its buffer again.
            await self._taken(bytes(chunk))
            self._meter.sent(len(chunk))

    async def send(self, data: bytes) -> None:
        """Send ``data``. Raises TransferStalled."""
        await self._taken(data)
        self._meter.sent(len(data))

    async def _taken(self, data: bytes) -> None:
        writing = asyncio.ensure_future(self._response.write(data))
        try:
            waiting = self._waiting()
            while True:
                done, _ = await asyncio.wait([writing], timeout=self._idle_timeout)
                if done:
                    return await writing
                before, waiting = waiting, self._waiting()
                if waiting >= before:
                    raise TransferStalled(
                        f"the reader took no byte for {self._idle_timeout:g} s; the download was ended"
                    )
        finally:
            writing.cancel()

    def _waiting(self) -> int:
        transport = self._request.transport
        return 0 if transport is None else transport.get_write_buffer_size()
