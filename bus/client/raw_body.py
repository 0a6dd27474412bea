"""The body of an HTTP answer, read from the socket itself into memory that is there; does not wait."""

from __future__ import annotations

import socket

_LONGEST_LINE = 80
_SIP = 16
"""Bytes received at a time to find the size of a chunk: little of its content comes along, to be copied."""


class RawBody:
    """Receives a body of known length, or of chunks (RFC 9112, section 7.1).

    Args:
        early: what came along with the head of the answer.
        length: of the body in bytes; None for chunks.

    Attributes:
        ended: whether the last byte of the body has been received.
    """

    def __init__(self, source: socket.socket, early: bytes, length: int | None) -> None:
        self._source = source
        self._early = early
        self._chunked = length is None
        self._left = length or 0
        self._first = True
        self.ended = length == 0

    def receive_into(self, view: memoryview) -> int:
        """Fill ``view`` with what is there, at least one byte; 0 at the end of the body.

        Raises:
            BlockingIOError: nothing is there yet.
            ConnectionError: the connection ended, or what came is no HTTP.
        """
        if not self._left and self._chunked and not self.ended:
            self._left = self._next_chunk()
            self.ended = not self._left
        if not self._left:
            return 0
        count = self._receive(view[: self._left])
        self._left -= count
        self.ended = not self._left and not self._chunked
        return count

    def _receive(self, view: memoryview) -> int:
        if self._early:
            count = min(len(view), len(self._early))
            view[:count] = self._early[:count]
            self._early = self._early[count:]
            return count
        count = self._source.recv_into(view)
        if not count:
            raise ConnectionResetError("the broker closed the connection in the midst of a body")
        return count

    def _next_chunk(self) -> int:
        """The size of the next chunk, which is 0 for the last one."""
        lines = 1 if self._first else 2  # the end of the chunk before, then the size
        while self._early.count(b"\r\n") < lines:
            if len(self._early) > _LONGEST_LINE:
                raise ConnectionResetError(f"no chunk where one should begin: {self._early[:20]!r}")
            more = self._source.recv(_SIP)
            if not more:
                raise ConnectionResetError("the broker closed the connection in the midst of a body")
            self._early += more
        *before, line, self._early = self._early.split(b"\r\n", lines)
        if any(before):
            raise ConnectionResetError(f"a chunk is longer than it says: {before[0][:20]!r}")
        self._first = False
        try:
            return int(line.partition(b";")[0], 16)
        except ValueError:
            raise ConnectionResetError(f"no size of a chunk: {line[:20]!r}") from None
