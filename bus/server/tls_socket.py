"""An encrypted connection on loan to threads that move a body, as if it were a socket that encrypts."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable
from contextlib import AbstractContextManager

from .tls_session import PIECE, TlsSession

_RECEIVE = 256 << 10
"""Bytes of ciphertext a call."""
_SEND = 256 << 10
"""Bytes of plaintext a call: what a reader who takes nothing holds in this process, encrypted."""


class TlsSocket:
    """Implements `BodySocket`; made by ``TlsConnection.lend``, which gets it back by ``close``.

    Args:
        endpoint: a duplicate of the connection's socket, not blocking.
        session: not used by anyone else meanwhile.
        alone: as `BodySocket.alone`.
        give_back: takes what has been encrypted and not been sent yet.
    """

    def __init__(
        self,
        endpoint: socket.socket,
        session: TlsSession,
        alone: Callable[[], AbstractContextManager[None]],
        give_back: Callable[[bytes | memoryview], None],
    ) -> None:
        self.alone = alone
        self._endpoint = endpoint
        self._session = session
        self._give_back = give_back
        self._received = memoryview(b"")
        self._unsent = memoryview(b"")

    def fileno(self) -> int:
        """Of the duplicate."""
        return self._endpoint.fileno()

    def setsockopt(self, level: int, option: int, value: bytes) -> None:
        """As a socket's."""
        self._endpoint.setsockopt(level, option, value)

    def recv_into(self, view: memoryview) -> int:
        """Raises BlockingIOError, and only when nothing that has arrived is left in this process."""
        count = 0
        while True:
            try:
                count += self._session.read_into(view[count:])
            except ssl.SSLError as error:
                raise _broken(error) from error
            if count == len(view) or self._session.ended:
                return count
            if not self._received:
                try:
                    self._received = memoryview(self._endpoint.recv(_RECEIVE))
                except BlockingIOError:
                    if not count:
                        raise
                    return count
                if not self._received:
                    # Whether the body was complete, its length says.
                    return count
            self._session.feed(self._received[:PIECE])
            self._received = _behind(self._received, PIECE)

    def send(self, data: bytes | memoryview, *, more: bool = False) -> int:
        """What this returns counts as sent, though some of it may wait for ``flush``."""
        self.flush()
        return self._encrypt(memoryview(data)[:_SEND], more)

    def send_file(self, file: int, position: int, count: int, buffer: memoryview) -> int:
        """As ``send``; the bytes go through ``buffer``."""
        self.flush()
        view = buffer[: min(count, _SEND)]
        return self._encrypt(view[: os.preadv(file, [view], position)], False)

    def flush(self) -> None:
        """Send what has been encrypted; raises BlockingIOError while the kernel does not take all of it."""
        while self._unsent:
            self._unsent = _behind(self._unsent, self._endpoint.send(self._unsent))

    def close(self) -> None:
        """Give the connection back to the event loop. On that loop, and not while a thread uses this."""
        self._endpoint.close()
        self._session.feed(self._received)
        self._give_back(self._unsent)

    def _encrypt(self, view: memoryview, more: bool) -> int:
        try:
            self._session.write(view)
        except ssl.SSLError as error:
            raise _broken(error) from error
        if not more:
            self._unsent = memoryview(self._session.take())
            try:
                self.flush()
            except BlockingIOError:
                pass
        return len(view)


def _behind(view: memoryview, count: int) -> memoryview:
    """What follows ``count`` bytes; if that is nothing, it does not keep their memory either."""
    return view[count:] or memoryview(b"")


def _broken(error: ssl.SSLError) -> ConnectionResetError:
    return ConnectionResetError(f"the peer broke the encryption: {error.reason or error}")
