"""What may be set about the HTTP side of a broker."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from .tls import TlsFiles


@dataclass(frozen=True)
class ServerSettings:
    """Address, time-outs and limits of the HTTP server.

    There is one patience in the whole server: ``idle_timeout`` seconds without a single byte moved.
    A transfer that makes progress is never cut off, however slow it is.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    """0 lets the system choose; the real one is in `Server.url`."""
    allow_remote: bool = False
    """Serve other machines even while there are no tokens, and so nobody is asked who they are."""
    tls: TlsFiles | None = None
    """Speak HTTPS, and nothing else."""
    idle_timeout: float = 30.0
    """Seconds."""
    max_json_bytes: int = 64 * 1024
    """Largest JSON body of a request."""
    max_wait: float = 60.0
    """Longest time in seconds that a request for deliveries is held open."""
    max_stream: float = 3600.0
    """Longest time in seconds that a stream of deliveries lasts; its reader then opens another."""
    shutdown_timeout: float = 5.0
    """Seconds that transfers in progress get to finish when the server is asked to stop."""
    read_buffer_bytes: int = 64 * 1024
    """Bytes of a body that aiohttp reads ahead, for each upload that is small or of unknown length."""

    head_timeout: float = 15.0
    """Seconds that the head of a request may take, and the handshake of TLS."""
    keepalive_timeout: float = 75.0
    """Seconds that a connection may rest between two requests."""
    max_head_bytes: int = 64 * 1024
    """Bytes of a request's head in all; a line of it has 8190 at most."""
    max_connections: int = 8192
    """Connections at a time."""

    @property
    def open_to_anyone(self) -> bool:
        """Whether callers are served without a token while there are no tokens."""
        return self.is_loopback or self.allow_remote

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach ``host``."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
