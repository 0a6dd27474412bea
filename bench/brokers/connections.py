"""What an idle connection and a running upload cost a broker in memory."""

from __future__ import annotations

import time
from contextlib import ExitStack

from . import meter
from .http import Http
from .load import MIB, TOPIC, Load, frames
from .servers import Running
from .tensorbus_raw import FRAMES

SETTLE = 2.0
"""Seconds that the broker gets before it is measured."""


def idle(server: Running, count: int) -> float:
    """Bytes that each of ``count`` open connections costs that have made one request."""
    load = Load(server.address, 0)
    with ExitStack() as open_connections:
        _ask(load, open_connections)
        before = _settled(server)
        for _ in range(count):
            _ask(load, open_connections)
        return (_settled(server) - before) / count


def uploads(server: Running, count: int) -> float:
    """Bytes that each of ``count`` uploads costs whose publisher sent half of 2 MiB and pauses."""
    load = Load(server.address, 2 * MIB)
    parts, length = frames(load.size)
    body = b"".join(bytes(part) for part in parts)
    with ExitStack() as open_connections:
        before = 0
        for number in range(count + 1):
            if number == 1:
                # The first one pays for what all of them share.
                before = _settled(server)
            http = Http(load)
            open_connections.callback(http.connection.close)
            http.ask("POST", f"/v1/topics/{TOPIC}/messages", length, FRAMES)
            http.connection.sendall(body[: length // 2])
        return (_settled(server) - before) / count


def _ask(load: Load, open_connections: ExitStack) -> None:
    http = Http(load)
    open_connections.callback(http.connection.close)
    http.call("GET", "/v1/topics")


def _settled(server: Running) -> int:
    time.sleep(SETTLE)
    return meter.memory(server.pid)
