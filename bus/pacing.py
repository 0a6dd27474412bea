"""Connections that stay within one machine need no pacing.

BBR, which many servers are set to, spaces the segments of a connection in time, so as not to fill the queues
of a network. Between two processes of one machine there is no such queue, and what remains of it is a timer
for every segment, which took a third off the speed of large messages and added nearly half to the processor
time that the broker takes for them. So such a connection is set to Reno, which is part of every Linux and
sends as soon as the receiver has room. All other connections keep what the system is set to.

Best before it is connected: once BBR has begun, the kernel goes on pacing, only at a higher rate.
"""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress
from typing import Protocol, cast

_OPTION: int | None = getattr(socket, "TCP_CONGESTION", None)
_PACED = b"bbr"
_UNPACED = b"reno"
_NAME = 16
"""Bytes of the longest name (TCP_CA_NAME_MAX)."""


class Socket(Protocol):
    """What a socket, and what asyncio shows of one, have in common."""

    def getpeername(self) -> object: ...

    def getsockname(self) -> object: ...

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes: ...

    def setsockopt(self, level: int, option: int, value: bytes, /) -> None: ...


def unpaced_socket(found: tuple[int, int, int, str, tuple[object, ...]]) -> socket.socket:
    """A socket for an address that was found, as ``socket.getaddrinfo`` gives them; see ``unpace``."""
    made = socket.socket(*found[:3])
    unpace(made, found[4])
    return made


def unpace(endpoint: Socket, address: object) -> None:
    """Have ``endpoint``, which is or will be connected to ``address`` or listens there, send without pacing,
    if that is an address of the loopback interface.

    Nothing changes where the system knows no such thing, or does not let this process choose.
    """
    if _OPTION is None:
        return
    with suppress(OSError):
        if _paced(endpoint) and _is_loopback(_host(address)):
            _set(endpoint)


def unpace_connected(connection: Socket) -> None:
    """As ``unpace``, where it is only known by now who the peer is."""
    if _OPTION is None:
        return
    with suppress(OSError):
        if _paced(connection):
            peer = _host(connection.getpeername())
            if _is_loopback(peer) or (peer and peer == _host(connection.getsockname())):
                _set(connection)


def _paced(endpoint: Socket) -> bool:
    assert _OPTION is not None
    return endpoint.getsockopt(socket.IPPROTO_TCP, _OPTION, _NAME).startswith(_PACED)


def _set(endpoint: Socket) -> None:
    assert _OPTION is not None
    endpoint.setsockopt(socket.IPPROTO_TCP, _OPTION, _UNPACED)


def _is_loopback(host: str) -> bool:
    return bool(host) and ipaddress.ip_address(host).is_loopback


def _host(address: object) -> str:
    """The numeric address, without port and zone; empty for what is not of the internet."""
    if not isinstance(address, tuple) or len(cast("tuple[object, ...]", address)) < 2:
        return ""
    return str(cast("tuple[object, ...]", address)[0]).partition("%")[0]
