"""`tensorbus serve --store`: one of several brokers that share a JetStream."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path

from tensorbus.bus.access import TokenFile
from tensorbus.bus.access.audit import AuditFile
from tensorbus.bus.broker import Broker, BrokerSettings
from tensorbus.bus.gateway import Gateway
from tensorbus.bus.peers import Peers
from tensorbus.bus.server import Server, ServerSettings
from tensorbus.bus.server.forwarding import Forwarding
from tensorbus.bus.stores.jetstream import JetStreamSettings, JetStreamStore
from tensorbus.errors import StorageError, StoreVersion

from .loops import spare_collections
from .serve import announce, hangups, say_who_may_come, stop_on_signals

log = logging.getLogger("tensorbus.serve")

_AGAIN = 1.0
"""Seconds after which a broker that begins anew, and finds no servers, tries again."""


async def serve_gateway(
    address: str,
    advertise: str | None,
    data: Path,
    limits: BrokerSettings,
    settings: ServerSettings,
    audit: AuditFile | None = None,
    *,
    as_json: bool,
) -> None:
    """Serve until SIGTERM or SIGINT; whenever another broker takes the lead from this one, begin anew.

    Raises InvalidRequest (the address), and as `tensorbus.cli.serve.serve`.
    """
    where = JetStreamSettings.parse(address)
    tokens = TokenFile(data)
    current = _Current()
    stop: asyncio.Event | None = None
    while True:
        store = JetStreamStore(where, stand_by=True)
        broker = Broker(store, limits)
        gateway = Gateway(broker, store)
        peers = Peers(store)
        async with AsyncExitStack() as running:
            try:
                await running.enter_async_context(broker)
            except StorageError as problem:
                if stop is None or isinstance(problem, StoreVersion):
                    raise
                log.warning("%s; this broker tries again", problem)
                if await _stopped_within(stop, _AGAIN):
                    log.info("stopping")
                    break
                continue
            forwarding = await running.enter_async_context(Forwarding(gateway))
            server = current.server = Server(broker, settings, tokens, forwarding, peers)
            await running.enter_async_context(server)
            await running.enter_async_context(hangups(server, audit))
            settings = replace(settings, port=server.port)
            if stop is None:
                # One for all that come: a signal that comes while it begins anew counts, too.
                stop = stop_on_signals(current)
                spare_collections()
                announce(server.url, str(where), as_json=as_json)
                say_who_may_come(server, settings, data)
            own = advertise or server.url
            await running.enter_async_context(peers.telling(own))
            if await _stopped(stop, gateway, own):
                log.info("stopping")
                break
    log.info("stopped")


class _Current:
    """The server of the broker as it is now.

    Attributes:
        server: None before the first.
    """

    server: Server | None = None

    def hurry(self) -> None:
        """See `Server.hurry`."""
        if self.server is not None:
            self.server.hurry()


async def _stopped_within(stop: asyncio.Event, seconds: float) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()
    return stop.is_set()


async def _stopped(stop: asyncio.Event, gateway: Gateway, own: str) -> bool:
    """Wait for the end: whether it was asked for; False if this broker has to begin anew."""
    asked = asyncio.create_task(stop.wait())
    watching = asyncio.create_task(gateway.watch(own))
    try:
        await asyncio.wait([asked, watching], return_when=asyncio.FIRST_COMPLETED)
        if asked.done():
            return True
        watching.result()
        return False
    finally:
        asked.cancel()
        watching.cancel()
        await asyncio.wait([asked, watching])
