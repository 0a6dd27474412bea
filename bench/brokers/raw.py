"""Two hops of TCP through a blocking relay: the limit of whatever stands between two processes."""

from __future__ import annotations

import socket
from time import monotonic

from tensorbus.bus.pacing import unpace

from .child import ready, tell
from .load import MIB, Load, connect, pieces


def relay(paced: bool) -> None:
    """Take a subscriber, then publishers, and pass on what comes."""
    listening = socket.create_server(("127.0.0.1", 0))
    if not paced:
        unpace(listening, listening.getsockname())
    tell(port=listening.getsockname()[1])
    target, _ = listening.accept()
    source, _ = listening.accept()
    buffer = memoryview(bytearray(MIB))
    while count := source.recv_into(buffer):
        target.sendall(buffer[:count])
    target.close()


def publish(load: Load, paced: bool = False) -> None:
    """Send the bytes, close, and be done."""
    parts = pieces(load.size)
    with connect(load, paced) as connection:
        ready()
        started = monotonic()
        for part in parts:
            connection.sendall(part)
        connection.shutdown(socket.SHUT_WR)
        tell(started=started, finished=monotonic())


def subscribe(load: Load, paced: bool = False) -> None:
    """Receive until the end."""
    buffer, received = bytearray(MIB), 0
    with connect(load, paced) as connection:
        tell(ready=True)
        while count := connection.recv_into(buffer):
            received += count
        tell(finished=monotonic(), received=received)
