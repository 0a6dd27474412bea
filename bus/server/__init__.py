"""The HTTP side of a broker."""

from .server import Server
from .settings import ServerSettings

__all__ = ["Server", "ServerSettings"]
