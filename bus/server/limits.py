"""Gates: what a connection may cost before anybody knows whose it is.

A peer that opens connections and says nothing, or says it byte by byte, would hold memory and descriptors for
as long as it likes. So every connection has a gate before aiohttp's protocol, which counts the bytes of a
request's head and the time it takes, and turns connections away beyond a number. From the head of a request
to its answer the gate stands open; what is slow then has the transfer's own idle time-out.

A connection that rests between two requests is ended by aiohttp, after ``keepalive_timeout``.

The gate also leaves what comes behind a head where it is, in the kernel, until somebody asks for it.
Otherwise each of a thousand publishers would have some hundred kilobytes read ahead before its turn comes.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from typing import cast

from aiohttp import web

from tensorbus.bus.access import Token
from tensorbus.errors import PROBLEM_PREFIX, TooManyRequests

from .problems import MEDIA_TYPE, Handler
from .settings import ServerSettings

log = logging.getLogger("tensorbus.server")

MAX_LINE_BYTES = 8190
"""Of the request line, and of one field of the head."""
MAX_FIELDS = 128
"""Fields of the head."""

LINGERING = 2.0
"""Seconds that what a refused sender still sends is read (and dropped), so that it sees the answer."""
MAX_LINGERING = 64
"""Connections that were turned away and are kept for a moment: each still takes a descriptor."""

_END_OF_HEAD = b"\r\n\r\n"
_HEAD_PIECE = 16 << 10
"""Bytes read at a time while a head is awaited: the beginning of a body may come along, but not much."""
_BODY_PIECE = 256 << 10


class Gates:
    """Makes the protocols of a server's connections, each behind a `Gate`; belongs to one event loop.

    Args:
        settings: the limits.
        make: makes the protocol behind the gate.
    """

    def __init__(self, settings: ServerSettings, make: Callable[[], asyncio.BaseProtocol]) -> None:
        self.settings = settings
        self.per_token: Counter[str] = Counter()
        self._make = make
        self._open: set[Gate] = set()
        self._loop = asyncio.get_running_loop()
        self._said = False
        self.lingering = 0
        # Of all connections: what is in it is handed on before the loop reads from the next one.
        self.room = memoryview(bytearray(_BODY_PIECE))

    def __call__(self) -> Gate:
        """The protocol of a new connection."""
        return Gate(self, cast(asyncio.Protocol, self._make()))

    def __len__(self) -> int:
        return len(self._open)

    def now(self) -> float:
        """Seconds of the event loop's clock."""
        return self._loop.time()

    def enter(self, gate: Gate) -> bool:
        """Count a connection; False if there are as many as there may be."""
        if len(self._open) >= self.settings.max_connections:
            if not self._said:
                log.warning(
                    "%d connections are open, which is the limit; more are turned away", len(self._open)
                )
            self._said = True
            return False
        self._open.add(gate)
        return True

    def leave(self, gate: Gate) -> None:
        """A connection is over."""
        self._open.discard(gate)
        self._said = False

    async def watch(self) -> None:
        """End connections whose head takes too long, for ever."""
        patience = self.settings.head_timeout
        while True:
            await asyncio.sleep(min(1.0, patience / 4))
            before = self.now() - patience
            for gate in [gate for gate in self._open if gate.since is not None and gate.since <= before]:
                gate.too_slow()


class Gate(asyncio.BufferedProtocol):
    """Stands before the protocol of one connection.

    Attributes:
        since: when the head that is awaited, or on its way, began to be due; None while there is none.
    """

    __slots__ = (
        "_away",
        "_counting",
        "_gates",
        "_head",
        "_held",
        "_inner",
        "_tail",
        "_token",
        "_transport",
        "since",
    )

    def __init__(self, gates: Gates, inner: asyncio.Protocol) -> None:
        self._gates = gates
        self._inner: asyncio.Protocol | None = inner
        self._transport: asyncio.Transport | None = None
        self._token: str | None = None
        self._away = False
        self._counting = True
        self._held = False
        self._head = 0
        self._tail = b""
        self.since: float | None = None

    # --- the connection ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let it in, unless there are too many."""
        self._transport = cast(asyncio.Transport, transport)
        if not self._gates.enter(self):
            self._inner = None
            self._turn_away(
                HTTPStatus.SERVICE_UNAVAILABLE, "broker-busy", "The broker has as many connections as it may"
            )
            return
        self.since = self._gates.now()
        assert self._inner is not None
        self._inner.connection_made(transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        return self._gates.room[:_HEAD_PIECE] if self._counting else self._gates.room

    def buffer_updated(self, nbytes: int) -> None:
        """Count what belongs to a head, and hand it on."""
        if self._away or self._inner is None:
            return
        data = bytes(self._gates.room[:nbytes])
        if self._counting and nbytes == _HEAD_PIECE and self._transport is not None:
            # There is more of it. A head may go on at once, a body when the handler wants it.
            self._held = True
            self._transport.pause_reading()
        if self._counting and not self._count(data):
            self._turn_away(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                "request-header-fields-too-large",
                f"The head of the request is longer than {self._gates.settings.max_head_bytes} bytes",
            )
            return
        self._inner.data_received(data)
        if self._counting:
            self.release()

    def release(self) -> None:
        """Read on, if that was held back."""
        if self._held:
            self._held = False
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()

    def eof_received(self) -> bool | None:
        """Handed on."""
        return None if self._away or self._inner is None else self._inner.eof_received()

    def pause_writing(self) -> None:
        """Handed on."""
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Handed on."""
        if self._inner is not None:
            self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give up its place."""
        self.since = None
        self._gates.leave(self)
        self._release()
        self._transport = None
        inner, self._inner = self._inner, None
        if inner is not None:
            inner.connection_lost(exc)

    # --- heads ---------------------------------------------------------------------------------------

    def _count(self, data: bytes) -> bool:
        """False once the head is too long."""
        if self.since is None:
            self.since = self._gates.now()
        limit = self._gates.settings.max_head_bytes
        end = (self._tail + data[: limit + len(_END_OF_HEAD)]).find(_END_OF_HEAD)
        if end >= 0:
            # What follows may be a body. The clock runs on until aiohttp has found a request in it.
            self._counting = False
            return self._head + end <= limit
        self._head += len(data)
        self._tail = (self._tail + data)[-3:]
        return self._head <= limit

    def begin(self) -> None:
        """The head of a request is there: it is being answered."""
        self.since = None
        self._counting = False

    def end(self, *, another: bool) -> None:
        """It was answered; ``another`` request may follow on this connection."""
        self.release()
        self._counting = another
        self._head = 0
        self._tail = b""

    def too_slow(self) -> None:
        """The head did not come in time."""
        if self._head or not self._counting:
            patience = self._gates.settings.head_timeout
            self._turn_away(
                HTTPStatus.REQUEST_TIMEOUT,
                "transfer-stalled",
                f"The head of the request did not arrive within {patience:g} s",
            )
        elif self._transport is not None:
            self._transport.close()
        self.since = None

    def _turn_away(self, status: HTTPStatus, slug: str, detail: str) -> None:
        """Answer as well as can be done without a request, and close.

        A connection that is closed while bytes still arrive is reset, and the answer lost with it. So it is
        closed on this side only, and what comes is dropped for a moment.
        """
        self.since = None
        self._away = True
        self.release()
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        document = {"type": PROBLEM_PREFIX + slug, "title": status.phrase, "status": status, "detail": detail}
        body = json.dumps(document).encode()
        retry = "Retry-After: 1\r\n" if status == HTTPStatus.SERVICE_UNAVAILABLE else ""
        transport.write(
            f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {MEDIA_TYPE}\r\n{retry}"
            f"Content-Length: {len(body)}\r\nConnection: close\r\nServer: tensorbus\r\n\r\n".encode()
            + body
        )
        if transport.can_write_eof() and self._gates.lingering < MAX_LINGERING:
            transport.write_eof()
            self._gates.lingering += 1
            asyncio.get_running_loop().call_later(LINGERING, self._abort, transport)
        else:
            transport.close()

    def _abort(self, transport: asyncio.Transport) -> None:
        self._gates.lingering -= 1
        transport.abort()

    # --- tokens --------------------------------------------------------------------------------------

    def claim(self, token: Token) -> None:
        """This connection is used by ``token`` now.

        Raises:
            TooManyRequests: the token has as many connections as it may have.
        """
        if self._token == token.id:
            return
        limit = token.quotas.max_connections
        if limit is not None and self._gates.per_token[token.id] >= limit:
            raise TooManyRequests(
                f"token {token.id} ({token.name}) has {limit} connections, which is what it may have; close "
                "some, or come again later"
            )
        self._release()
        self._token = token.id
        self._gates.per_token[token.id] += 1

    def _release(self) -> None:
        if self._token is None:
            return
        self._gates.per_token[self._token] -= 1
        if not self._gates.per_token[self._token]:
            del self._gates.per_token[self._token]
        self._token = None


def gate_of(request: web.BaseRequest) -> Gate | None:
    """The gate of a request's connection; None if that is gone, or has none."""
    transport = request.transport
    protocol = None if transport is None else transport.get_protocol()
    return protocol if isinstance(protocol, Gate) else None


def read_body(request: web.BaseRequest) -> None:
    """Somebody wants the body of ``request`` from aiohttp."""
    if (gate := gate_of(request)) is not None:
        gate.release()


@web.middleware
async def gate_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Tell the gate when a request begins and ends; the first of all middlewares."""
    gate = gate_of(request)
    if gate is None:
        return await handler(request)
    gate.begin()
    another = False
    try:
        response = await handler(request)
        if response.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS):
            # Who is not let in does not stay: the next attempt costs them a connection.
            response.force_close()
        another = response.keep_alive is not False and request.content.at_eof()
        return response
    finally:
        gate.end(another=another)
