"""The client's end of a TLS connection, with no more than these measurements need.

Python's own encrypted socket makes two system calls a record of 16 KiB to receive, and one to send. Here the
records pass through memory, many at a time, so that it is the broker that is measured.
"""

from __future__ import annotations

import io
import socket
import ssl
from typing import cast

_SEND = 256 << 10
"""Bytes that are encrypted before they are sent together."""
_RECEIVE = 128 << 10
"""Bytes that are received before they are decrypted."""


class TlsEnd(io.RawIOBase):
    """Sends and receives on a connected, blocking socket; the handshake is over when this is made."""

    def __init__(self, connection: socket.socket, context: ssl.SSLContext, host: str) -> None:
        self._connection = connection
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._session = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._room = memoryview(bytearray(_RECEIVE))
        while True:
            try:
                self._session.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush()
                self._receive()
        self._flush()

    def sendall(self, data: bytes | memoryview) -> None:
        """Encrypt and send all of it."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _SEND):
            self._session.write(view[start : start + _SEND])
            self._flush()

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        """Decrypt what there is, at least one byte; 0 at the end."""
        view = memoryview(buffer).cast("B")
        count = 0
        while True:
            try:
                while count < len(view):
                    # One record a call, however large the buffer is.
                    more = cast("int", self._session.read(len(view), view[count:]))  # type: ignore[arg-type]
                    if not more:
                        return count
                    count += more
            except ssl.SSLWantReadError:
                pass
            if count or not self._receive():
                return count

    def makefile(self, _mode: str, buffering: int) -> io.BufferedReader:
        """As a socket's, to read from."""
        return io.BufferedReader(self, buffering)

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._connection.sendall(self._outgoing.read())

    def _receive(self) -> int:
        count = self._connection.recv_into(self._room)
        self._incoming.write(self._room[:count])
        return count
