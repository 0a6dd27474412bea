"""TLS of a server's connections, which threads may borrow to move a body.

Strategy. asyncio's own TLS belongs to the event loop: each byte passes through it, in small pieces, under its
lock on the interpreter. Here a session in memory stands between the loop's plain transport and the protocol
above. As long as heads and small bodies go back and forth, the loop feeds it. A large body is moved by a
thread, which gets the session and a duplicate of the socket for so long, decrypts into its own buffer or
encrypts from it, 256 KiB a call, without the lock. OpenSSL's sessions are not made for two threads: so the
loop neither writes nor closes a session while it is lent, and reads only while no thread is at work.

That the peer closes its side without a close_notify is left to HTTP to judge: a body tells by its length, or
its last chunk, whether it is complete.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, cast

from .settings import ServerSettings
from .tls_session import PIECE, TlsSession
from .tls_socket import TlsSocket

log = logging.getLogger("tensorbus.server")

_HELLO = 16 << 10
"""Bytes received at a time before the handshake is over."""
LINGERING = 2.0
"""Seconds that what a refused peer still sends is read (and dropped), so that it sees why."""


class Handshakes:
    """Makes the connections of a listener, and limits those of whom nothing is known yet.

    Args:
        context: the server's certificate, and whom it asks for one.
        make: makes the protocol above a connection.
    """

    def __init__(
        self, context: ssl.SSLContext, settings: ServerSettings, make: Callable[[], asyncio.BufferedProtocol]
    ) -> None:
        self.context = context
        self.patience = settings.head_timeout
        self.loop = asyncio.get_running_loop()
        # Of all connections: what is in it is fed before the loop reads from the next one.
        self.room = memoryview(bytearray(PIECE))
        self._limit = settings.max_connections
        self._make = make
        self._under_way = 0

    def __call__(self) -> TlsConnection:
        """The lower protocol of a new connection."""
        return TlsConnection(self, self._make())

    def begin(self) -> bool:
        """One more; False if there are too many."""
        self._under_way += 1
        return self._under_way <= self._limit

    def end(self) -> None:
        """It succeeded, or failed."""
        self._under_way -= 1


class TlsConnection(asyncio.Transport, asyncio.BufferedProtocol):
    """The protocol of a plain transport, and the transport of the protocol above."""

    def __init__(self, handshakes: Handshakes, upper: asyncio.BufferedProtocol) -> None:
        super().__init__()
        self._handshakes = handshakes
        self._upper = upper
        self._session = TlsSession(handshakes.context)
        self._raw: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._made = False
        self._closing = False
        self._deaf = False  # what comes is dropped
        self._paused = False  # by the protocol above
        self._reading = True
        self._lent = False
        self._busy = False  # a thread uses the session

    # --- below: the plain transport --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake."""
        self._raw = cast(asyncio.Transport, transport)
        begun = self._handshakes.begin()
        self._timer = self._handshakes.loop.call_later(self._handshakes.patience, self._raw.abort)
        if not begun:
            self._raw.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        if self._deaf:
            return self._handshakes.room
        if not self._made:
            return self._handshakes.room[:_HELLO]
        # No more than the protocol above would take: what comes behind a head stays in the kernel.
        return self._handshakes.room[: len(cast(memoryview, self._upper.get_buffer(-1)))]

    def buffer_updated(self, nbytes: int) -> None:
        """Decrypt, and hand on."""
        if self._deaf or self._closing:
            return
        self._session.feed(self._handshakes.room[:nbytes])
        if self._made or self._shake():
            self._deliver()

    def eof_received(self) -> bool | None:
        """Handed on; the plain transport closes."""
        if self._made and not self._deaf and not self._closing:
            self._upper.eof_received()
        return None

    def pause_writing(self) -> None:
        """Handed on."""
        if self._made:
            self._upper.pause_writing()

    def resume_writing(self) -> None:
        """Handed on."""
        if self._made:
            self._upper.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over. A thread that has borrowed it finds that out by itself."""
        self._closing = True
        self._settle()
        if self._made:
            self._upper.connection_lost(exc)

    def _settle(self) -> None:
        """The handshake is over, one way or the other."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
            self._handshakes.end()

    def _shake(self) -> bool:
        try:
            complete = self._session.handshake()
        except ssl.SSLError as error:
            peer = self.get_extra_info("peername")
            log.info("no TLS with %s: %s", peer, error.reason or error, extra={"fields": {"peer": str(peer)}})
            self._refuse()
            return False
        self._flush()
        if complete:
            self._settle()
            self._made = True
            self._upper.connection_made(self)
        return complete

    def _refuse(self) -> None:
        """Say why (the session has an alert ready), and drop what still comes, for a moment."""
        self._flush()
        self._deaf = True
        raw = self._plain()
        if raw.can_write_eof() and not raw.is_closing():
            raw.write_eof()
        # It goes on to count as a handshake, until it is gone.
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._handshakes.loop.call_later(LINGERING, raw.abort)

    def _deliver(self) -> None:
        """Give the protocol above what there is, for as long as it wants it."""
        while not (self._paused or self._busy or self._deaf or self._closing):
            try:
                count = self._session.read_into(cast(memoryview, self._upper.get_buffer(-1)))
            except ssl.SSLError as error:
                log.info("TLS with %s broke: %s", self.get_extra_info("peername"), error.reason or error)
                self._flush()
                self.abort()
                return
            if count:
                self._upper.buffer_updated(count)
            elif self._session.ended:
                self._upper.eof_received()
                self.close()
                return
            else:
                break
        # What the session has to say of its own accord may wait until what was written before has left.
        if not self.get_write_buffer_size():
            self._flush()

    def _flush(self) -> None:
        if not self._lent and (data := self._session.take()) and not self._plain().is_closing():
            self._plain().write(data)

    def _pace(self) -> None:
        """Read, or do not."""
        raw = self._plain()
        wanted = self._deaf or not (self._paused or self._busy)
        if wanted == self._reading or raw.is_closing():
            return
        self._reading = wanted
        if not wanted:
            raw.pause_reading()
            return
        raw.resume_reading()

    def _go_on(self) -> None:
        """The protocol above, or the loop, may read again."""
        self._pace()
        if self._session.unread:
            self._handshakes.loop.call_soon(self._deliver)

    def _plain(self) -> asyncio.Transport:
        assert self._raw is not None, "there is no connection yet"
        return self._raw

    # --- above: the protocol that is served --------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As asyncio's own: "peercert", "cipher", "ssl_object", "sslcontext", and what a socket tells."""
        match name:
            case "ssl_object":
                return self._session.object
            case "sslcontext":
                return self._handshakes.context
            case "peercert":
                return self._session.object.getpeercert()
            case "cipher":
                return self._session.object.cipher()
            case _:
                return self._plain().get_extra_info(name, default)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The one above."""
        return self._upper

    def is_closing(self) -> bool:
        """Whether it is closed, or about to be."""
        return self._closing or self._plain().is_closing()

    def is_reading(self) -> bool:
        """Whether the protocol above wants to read."""
        return not self._paused and not self.is_closing()

    def pause_reading(self) -> None:
        """Until ``resume_reading``, what arrives stays in the kernel."""
        self._paused = True
        self._pace()

    def resume_reading(self) -> None:
        """Read on."""
        self._paused = False
        self._go_on()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Of what is encrypted and waits to be sent."""
        self._plain().set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Bytes that are encrypted and wait to be sent."""
        return self._plain().get_write_buffer_size()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send."""
        if self._lent:
            raise RuntimeError("a body is being moved on this connection; nothing can be written in between")
        if self.is_closing() or self._deaf:
            return
        view = memoryview(data).cast("B")
        for start in range(0, len(view), PIECE):
            self._session.write(view[start : start + PIECE])
            self._flush()

    def can_write_eof(self) -> bool:
        """Whether this side can be closed on its own."""
        return not self._lent and self._plain().can_write_eof()

    def write_eof(self) -> None:
        """Say that nothing more will be sent; what comes from now on is dropped, until the peer closes."""
        self._session.close()
        self._flush()
        self._plain().write_eof()
        self._deaf = True
        self._pace()

    def close(self) -> None:
        """Send what waits, say that it was all, and close. In the midst of a body, just close."""
        if self._closing:
            return
        self._closing = True
        if not self._lent and not self._deaf:
            self._session.close()
            self._flush()
        self._plain().close()

    def abort(self) -> None:
        """Close at once; the peer learns that it did not get everything."""
        self._closing = True
        self._plain().abort()

    # --- beside: threads that move a body ------------------------------------------------------------------

    def lend(self, *, to_read: bool) -> TlsSocket:
        """The session and the socket, until they are closed; what was written has to have left.

        Args:
            to_read: this transport does not read meanwhile. Otherwise only while ``alone`` is held.

        Raises:
            ConnectionResetError: the connection is closed.
        """
        if self.is_closing() or self._deaf or self._lent:
            raise ConnectionResetError("the connection is closed")
        endpoint = socket.socket(fileno=os.dup(self._plain().get_extra_info("socket").fileno()))
        endpoint.setblocking(False)
        self._lent = True
        self._busy = to_read
        self._pace()
        return TlsSocket(endpoint, self._session, self._alone, self._take_back)

    @contextmanager
    def _alone(self) -> Generator[None]:
        before, self._busy = self._busy, True
        self._pace()
        try:
            yield
        finally:
            self._busy = before
            self._pace()

    def _take_back(self, unsent: bytes | memoryview) -> None:
        self._lent = self._busy = False
        if self.is_closing():
            return
        if unsent:
            self._plain().write(unsent)
        self._flush()
        self._go_on()
