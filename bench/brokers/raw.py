"""Two hops of TCP through a blocking relay: the limit of whatever stands between two processes."""

from __future__ import annotations

import socket
import sys
from time import monotonic

from .child import ready, tell
from .load import MIB, Load, connect, pieces


def relay() -> None:
    """Take a subscriber, then publishers, and pass on what comes."""
    listening = socket.create_server(("127.0.0.1", 0))
    tell(port=listening.getsockname()[1])
    target, _ = listening.accept()
    source, _ = listening.accept()
    buffer = memoryview(bytearray(MIB))
    while count := source.recv_into(buffer):
        target.sendall(buffer[:count])
    target.close()


def publish(load: Load) -> None:
    """Send the bytes, close, and be done."""
    parts = pieces(load.size)
    with connect(load) as connection:
        ready()
        started = monotonic()
        for part in parts:
            connection.sendall(part)
        connection.shutdown(socket.SHUT_WR)
        tell(started=started, finished=monotonic())


def subscribe(load: Load) -> None:
    """Receive until the end."""
    buffer, received = bytearray(MIB), 0
    with connect(load) as connection:
        tell(ready=True)
        while count := connection.recv_into(buffer):
            received += count
        tell(finished=monotonic(), received=received)


if __name__ == "__main__":
    sys.exit(relay())
