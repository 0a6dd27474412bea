"""How much of what was written to a connection is still on this machine."""

from __future__ import annotations

import asyncio
import struct
import sys

if sys.platform == "linux":
    import fcntl
    import termios

    _QUEUED = termios.TIOCOUTQ  # which Linux calls SIOCOUTQ for sockets


def unsent_bytes(transport: asyncio.WriteTransport | None) -> int:
    """Bytes that the peer's machine has not acknowledged: in the transport's buffer and in the kernel's.

    A kernel buffers several megabytes, which a slow link needs minutes to carry; only this count tells such
    progress from a dead peer. Where the system does not say, the kernel's part counts as sent.
    """
    if transport is None:
        return 0
    waiting = transport.get_write_buffer_size()
    endpoint = transport.get_extra_info("socket")
    if sys.platform == "linux" and endpoint is not None and endpoint.fileno() >= 0:
        try:
            waiting += struct.unpack("i", fcntl.ioctl(endpoint.fileno(), _QUEUED, bytes(4)))[0]
        except OSError:
            pass  # the connection has just ended; whoever uses it finds out
    return waiting
