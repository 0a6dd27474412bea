"""`tensorbus serve --store`: one of several brokers that share a JetStream."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from pathlib import Path

from tensorbus.bus.access import TokenFile
from tensorbus.bus.access.audit import AuditFile
from tensorbus.bus.broker import Broker, BrokerSettings
from tensorbus.bus.gateway import Gateway
from tensorbus.bus.server import Server, ServerSettings
from tensorbus.bus.server.forwarding import Forwarding
from tensorbus.bus.stores.jetstream import JetStreamSettings, JetStreamStore

from .loops import spare_collections
from .serve import announce, hangups, say_who_may_come, stop_on_signals

log = logging.getLogger("tensorbus.serve")


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
    first = True
    while True:
        store = JetStreamStore(where, stand_by=True)
        broker = Broker(store, limits)
        gateway = Gateway(broker, store)
        async with broker, Forwarding(gateway) as forwarding:
            server = Server(broker, settings, tokens, forwarding)
            stop = stop_on_signals(server)
            async with server, hangups(server, audit):
                settings = replace(settings, port=server.port)
                if first:
                    spare_collections()
                    announce(server.url, str(where), as_json=as_json)
                    say_who_may_come(server, settings, data)
                    first = False
                if await _stopped(stop, gateway, advertise or server.url):
                    log.info("stopping")
                    break
    log.info("stopped")


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
