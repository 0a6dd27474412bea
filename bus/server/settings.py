"""What may be set about the HTTP side of a broker."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass


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
    """Listen on an address that other machines can reach. There is no authentication."""
    idle_timeout: float = 30.0
    """Seconds."""
    max_json_bytes: int = 64 * 1024
    """Largest JSON body of a request."""
    max_wait: float = 60.0
    """Longest time in seconds that a request for deliveries is held open."""
    shutdown_timeout: float = 5.0
    """Seconds that transfers in progress get to finish when the server is asked to stop."""
    read_buffer_bytes: int = 64 * 1024
    """Bytes of a body that aiohttp reads ahead, for each upload that is small or of unknown length."""

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach ``host``."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
