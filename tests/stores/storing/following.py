"""A broker in front of another one that leads their store, in this process: tests talk to the first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from tensorbus.bus.access import TokenFile
from tensorbus.bus.broker import Broker, BrokerSettings
from tensorbus.bus.gateway import Gateway
from tensorbus.bus.server import Server, ServerSettings
from tensorbus.bus.server.forwarding import Forwarding
from tensorbus.bus.stores.jetstream import JetStreamSettings, JetStreamStore


@asynccontextmanager
async def running_follower(
    where: JetStreamSettings,
    data: Path,
    limits: BrokerSettings | None = None,
    settings: ServerSettings | None = None,
) -> AsyncGenerator[str]:
    """As `running_broker`: the address of the one that does not lead."""
    here = replace(settings or ServerSettings(), host="127.0.0.1", port=0)
    async with AsyncExitStack() as stack:

        async def start(store: JetStreamStore) -> tuple[Gateway, str]:
            broker = await stack.enter_async_context(Broker(store, limits))
            gateway = Gateway(broker, store)
            forwarding = await stack.enter_async_context(Forwarding(gateway))
            server = await stack.enter_async_context(Server(broker, here, TokenFile(data), forwarding))
            watching = asyncio.create_task(gateway.watch(server.url))
            stack.push_async_callback(_stop, watching)
            return gateway, server.url

        leader = JetStreamStore(where)
        await start(leader)
        while await leader.log.leader() is None:
            await asyncio.sleep(0.01)
        gateway, url = await start(JetStreamStore(where, stand_by=True))
        async with asyncio.timeout(10):
            while gateway.url is None:
                await asyncio.sleep(0.01)
        yield url


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
