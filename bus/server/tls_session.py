"""The TLS of one connection in memory: bytes in, bytes out; no socket, no event loop, never waits."""

from __future__ import annotations

import ssl
from typing import cast

PIECE = 64 << 10
"""Ciphertext that is fed, or plaintext that is written, at a time: OpenSSL keeps the memory that it took."""
_MOST_OWED = 64 << 10
"""Bytes that the peer may make this side say of its own accord (new keys), before it takes any of them."""


class TlsSession:
    """The server's end. Used by one thread at a time.

    What arrives is fed with ``feed`` and comes out of ``read_into``; what is to be sent goes into ``write``
    and comes out of ``take``. The other methods may have something to send, too.

    Attributes:
        object: says who the peer is, and which cipher was agreed on.
        ended: whether the peer has said that it sends nothing more (close_notify).
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.ended = False
        self.object = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def handshake(self) -> bool:
        """Go on with the handshake; whether it is complete. Raises ssl.SSLError."""
        try:
            self.object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def feed(self, data: bytes | memoryview) -> None:
        """What has arrived. Not much more than PIECE at a time, and only when ``read_into`` gave 0."""
        self._incoming.write(data)

    @property
    def unread(self) -> bool:
        """Whether ``read_into`` may give something before more is fed."""
        return self._incoming.pending > 0 or self.object.pending() > 0

    def read_into(self, view: memoryview) -> int:
        """Decrypt what there is into ``view``; how many bytes. 0: feed more, unless it has ``ended``.

        Raises:
            ssl.SSLError: what was fed is forged, damaged or no TLS.
        """
        if self._outgoing.pending > _MOST_OWED:
            raise ssl.SSLError("the peer asks for new keys, and takes none of the answers")
        count, size = 0, len(view)
        read = self.object.read
        try:
            # One record a call, however large the buffer is.
            while count < size and not self.ended:
                more = cast(int, read(size, view[count:]))  # type: ignore[arg-type]
                count += more
                self.ended = not more
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        except ssl.SSLError:
            # What came before counts; the next call fails the same way.
            if not count:
                raise
        return count

    def write(self, data: bytes | memoryview) -> None:
        """Encrypt all of ``data``. Raises ssl.SSLError."""
        left = memoryview(data)
        while left:
            left = left[self.object.write(left) :]

    def take(self) -> bytes:
        """What is to be sent now."""
        return self._outgoing.read()

    def close(self) -> None:
        """Say that nothing more will be sent (close_notify)."""
        try:
            self.object.unwrap()
        except ssl.SSLError:
            # It did not say so itself yet, which nobody waits for; or the session is broken already.
            pass
