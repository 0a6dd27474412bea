"""A whole broker inside a test: the real one, on a loopback port and a directory of its own.

async def test_my_site(tmp_path):
    async with running_broker(tmp_path) as url, Client(url) as bus:
        await bus.publish("models.test", {"weight": numpy.zeros(3)})
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from tensorbus.bus.access import TokenFile
from tensorbus.bus.broker import Broker, BrokerSettings
from tensorbus.bus.server import Server, ServerSettings
from tensorbus.bus.stores.file import FileStore


@asynccontextmanager
async def running_broker(
    data: Path, broker_settings: BrokerSettings | None = None, settings: ServerSettings | None = None
) -> AsyncGenerator[str]:
    """Run a broker in this event loop, with its data in the directory ``data``; yields its URL.

    Tokens are asked for if ``data`` holds some (`tensorbus.bus.access.TokenFile`). The address
    is always a free port of 127.0.0.1, whatever ``settings`` say.
    """
    where = replace(settings or ServerSettings(), host="127.0.0.1", port=0)
    async with (
        Broker(FileStore(data), broker_settings) as broker,
        Server(broker, where, TokenFile(data)) as server,
    ):
        yield server.url
