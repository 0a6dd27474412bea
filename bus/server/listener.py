"""Listener: a socket that takes connections, in the clear or with TLS."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import sys

from tensorbus.bus.pacing import unpace
from tensorbus.errors import PortInUse

from .limits import Gates
from .settings import ServerSettings
from .tls_connection import Handshakes

BACKLOG = 512
"""Connections that may wait to be accepted."""


class Listener:
    """A socket that takes connections, each through a gate.

    Args:
        settings: say where.
        gates: make the protocols of the connections.
    """

    def __init__(self, settings: ServerSettings, gates: Gates) -> None:
        self._socket = listening_socket(settings)
        self._settings = settings
        self._gates = gates
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Where it really listens."""
        host, port = self._socket.getsockname()[:2]
        return host, port

    async def listen(self, context: ssl.SSLContext | None) -> None:
        """Take connections; called again, new ones get this ``context`` instead of the one before.

        Connections that are open, and those that wait to be taken, notice nothing of that.
        """
        before = self._server
        self._server = await asyncio.get_running_loop().create_server(
            self._gates if context is None else Handshakes(context, self._settings, self._gates),
            # The old server closes its own descriptor; the socket itself goes on listening.
            sock=self._socket.dup(),
            backlog=BACKLOG,
        )
        if before is not None:
            before.close()

    def close(self) -> None:
        """Take no more connections; those that are open stay."""
        if self._server is not None:
            self._server.close()
        self._socket.close()


def listening_socket(settings: ServerSettings) -> socket.socket:
    """A socket bound to the address of ``settings``; raises PortInUse."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.create_server(address, family=family, backlog=BACKLOG)
    except OSError as error:
        reason = os.strerror(error.errno) if isinstance(error.errno, int) and error.errno > 0 else str(error)
        raise PortInUse(
            f"cannot listen on {settings.host} port {settings.port}: {reason}; "
            "choose another with --port (0 lets the system choose)"
        ) from error
    # Inherited by every connection, as is the time-out.
    unpace(listening, listening.getsockname())
    if sys.platform == "linux":
        # Inherited by every connection: the kernel ends it when the peer takes nothing for so long. The
        # sender of frames looks for itself; this is for the answers that aiohttp writes.
        milliseconds = int(settings.idle_timeout * 1000)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    return listening
