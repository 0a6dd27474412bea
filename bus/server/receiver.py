"""A large request body from its connection into an upload, without passing through aiohttp.

Strategy: aiohttp would read ahead for each connection on its own, some hundred kilobytes that add up with the
number of publishers, and hand over each piece on the event loop. So once the head of a request of known
length has been parsed, aiohttp's transport is paused, what it had read is passed on, and the rest is received
on a duplicate of the connection's descriptor: a thread receives into its one buffer, and checks and writes
what is there, for as long as bytes flow. A silent publisher has no thread and no buffer; the loop waits for
it. What is encrypted the same thread decrypts (`tls_connection`).

aiohttp does not learn where the body ended, so the connection is of no use for another request.
"""

from __future__ import annotations

import asyncio
import select
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Protocol, Self

from aiohttp import web

from tensorbus.bus.stores.base import Part
from tensorbus.errors import TransferStalled, TruncatedFrames

from .bodies import count_in
from .body_socket import BodySocket, borrow, can_borrow
from .context import context
from .movers import MOVERS, Turn

LARGE = 1 << 20
"""Bytes of a body from which a connection of its own is worth while."""
_STAY = 32 << 20
"""Bytes that a thread takes before it lets the upload see whether the disk keeps up."""
_GATHER = 256 << 10
"""Bytes that are worth a moment's wait, so that a sender that is slightly slower is not taken in sips."""
_MOMENT = 1
"""Milliseconds."""


class Taker(Protocol):
    """What bytes go to: an `Upload`, or the part of one that was lent to this broker."""

    async def write(self, chunk: Part) -> None: ...

    def take(self, view: memoryview) -> None: ...

    async def pace(self) -> None: ...

    async def flush(self) -> None: ...


def can_receive(request: web.Request) -> bool:
    """Whether the body can be received past aiohttp: it is large and of known length."""
    return (
        (request.content_length or 0) >= LARGE
        and "Transfer-Encoding" not in request.headers
        and can_borrow(request)
    )


async def receive(request: web.Request, upload: Taker, length: int) -> None:
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
            count_in(request, len(chunk))
            left -= len(chunk)
            await upload.write(chunk)
        await upload.flush()
        while left:
            stay = await MOVERS.run(partial(source.move, upload, left))
            count_in(request, stay.moved)
            left -= stay.moved
            if stay.ended and left:
                raise TruncatedFrames(f"the body ended after {length - left} of {length} bytes")
            await upload.pace()
            if stay.waits and left:
                await source.readable()


@dataclass(frozen=True, slots=True)
class Stay:
    """What a thread did: how many bytes it moved, and whether it left because no more were there (yet)."""

    moved: int
    waits: bool = False
    ended: bool = False


class SocketReceiver:
    """Receives on the connection of a request, past aiohttp; an async context manager."""

    def __init__(self, request: web.Request, idle_timeout: float) -> None:
        self._request = request
        self._idle_timeout = idle_timeout
        self._socket: BodySocket | None = None
        self._poll = select.poll()
        self._ended = False

    async def __aenter__(self) -> Self:
        self._socket = borrow(self._pause(), to_read=True)
        self._poll.register(self._socket, select.POLLIN)
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

    def move(self, upload: Taker, left: int, turn: Turn) -> Stay:
        """In a worker thread: bring up to ``left`` bytes into the upload, for as long as they flow."""
        most = min(left, _STAY)
        moved = 0
        while moved < most and not turn.over:
            count = self._fill(turn.buffer[: most - moved])
            if count:
                upload.take(turn.buffer[:count])
                moved += count
            elif self._ended or not self._poll.poll(turn.patience):
                return Stay(moved, waits=not self._ended, ended=self._ended)
        return Stay(moved)

    def _fill(self, view: memoryview) -> int:
        """Receive what is there; how many bytes."""
        target = self._open()
        count = 0
        while count < len(view):
            try:
                more = target.recv_into(view[count:])
            except BlockingIOError:
                if not 0 < count < _GATHER or not self._poll.poll(_MOMENT):
                    break
                continue
            if not more:
                self._ended = True
                break
            count += more
        return count

    def _open(self) -> BodySocket:
        assert self._socket is not None, "use the receiver in `async with`"
        return self._socket

    def _pause(self) -> asyncio.Transport:
        transport = self._request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the publisher closed the connection")
        transport.pause_reading()
        return transport
