"""Brokers that share a store, watched: any of them tells of all, and each figure is told once."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import aiohttp
import nats
import numpy as np

from storing import Gateways, NatsServers
from tensorbus.bus.client import Client
from tensorbus.bus.testing import running_broker

MIB = 1 << 20
ONCE = ("messages", "stored_bytes", "consumers", "ack_pending", "open_messages", "consumer_backlog")
NOISE = (
    b"no JSON",
    b"[]",
    b"{}",
    b'{"left": 7}',
    b'{"id": "x", "url": "http://x", "leads": true, "behind": -1}',
    b'{"id": "x", "url": "http://x", "version": "1", "started": 0, "uploads": 0, "downloads": 0, '
    b'"received": 0, "sent": 0, "moving": [{}]}',
)


async def figures(http: aiohttp.ClientSession, url: str) -> dict[str, float]:
    """What ``/metrics`` of one broker says, by name and labels."""
    async with http.get(f"{url}/metrics") as answer:
        lines = [line for line in (await answer.text()).splitlines() if not line.startswith("#")]
    pairs = [line.rsplit(" ", 1) for line in lines]
    return {name: float(value) for name, value in pairs}


async def test_any_broker_tells_of_all(tmp_path: Path, nats_server: NatsServers) -> None:
    """Who leads, how far each is, and what moves at which, however one asks; figures of the store once."""
    name = "w" + hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]
    with Gateways(tmp_path, f"{nats_server.address}&name={name}") as gateways:
        for _ in range(2):
            gateways.start()
        leader = gateways.leader()
        gateways.ready(1 - leader)
        first, other = gateways.urls[leader], gateways.urls[1 - leader]
        values = np.random.default_rng(0).standard_normal(32 * MIB // 8)
        async with Client(other) as bus, aiohttp.ClientSession(read_bufsize=1 << 16) as http:
            stored = await bus.publish("models.demo", {"w": values})
            async with bus.subscribe(">", consumer="all"):
                pass
            await tell_nonsense(nats_server, f"{name}.brokers")
            async with http.get(f"{other}/v1/messages/{stored.id}/frames") as download:
                await download.content.readexactly(1000)
                for url in (first, other):
                    await told_of_all(http, url, leads=first, downloads_at=other)
                told = await figures(http, first)
                other_told = await figures(http, other)
            assert (told["tensorbus_leads"], other_told["tensorbus_leads"]) == (1, 0)
            for each in (told, other_told):
                assert each["tensorbus_store_connected"] == 1
                assert each["tensorbus_log_behind_records"] == 0
            assert told["tensorbus_messages"] == told['tensorbus_consumer_backlog{consumer="all"}'] == 1
            assert not [each for each in other_told for once in ONCE if each.startswith(f"tensorbus_{once}")]
            # What one hands on to the other is counted by the one that has the client.
            received = [each["tensorbus_received_bytes_total"] for each in (told, other_told)]
            assert stored.bytes_on_wire <= sum(received) < 1.1 * stored.bytes_on_wire


async def tell_nonsense(servers: NatsServers, subject: str) -> None:
    """Somebody of another release says what nobody understands; it is passed over."""
    client = await nats.connect(servers.address.partition("?")[0])  # pyright: ignore[reportUnknownMemberType]
    for word in NOISE:
        await client.publish(subject, word)
    await client.flush()
    await client.close()


async def told_of_all(http: aiohttp.ClientSession, url: str, *, leads: str, downloads_at: str) -> None:
    """The status of one broker, as soon as it knows of the download."""
    async with asyncio.timeout(20):
        while True:
            async with http.get(f"{url}/v1/status") as answer:
                status: dict[str, Any] = await answer.json()
            shown = {each["url"]: each for each in status["brokers"]["shown"]}
            if status["transfers"]["count"] and shown[downloads_at]["downloads"]:
                break
            await asyncio.sleep(0.1)
    assert status["store"] == {"kind": "jetstream", "shared": True}
    assert status["brokers"]["count"] == len(shown) == 2
    assert status["consumers"]["shown"][0]["backlog"] == 1
    (transfer,) = status["transfers"]["shown"]
    assert (transfer["direction"], transfer["topic"]) == ("download", "models.demo")
    assert 0 < transfer["bytes"] < transfer["total"]
    for each in shown.values():
        assert each["leads"] is (each["url"] == leads)
        assert each["behind"] == 0
        assert each["away"] is None


async def test_a_broker_alone_has_no_others(tmp_path: Path) -> None:
    """A store of files is not shared: no list of brokers, and no figure that is about sharing."""
    async with running_broker(tmp_path) as url, Client(url) as bus, aiohttp.ClientSession() as http:
        status = await bus.status()
        assert status["store"] == {"kind": "files", "shared": False}
        assert status["brokers"] == {"count": 0, "shown": []}
        told = await figures(http, url)
        assert told["tensorbus_messages"] == 0
        assert not {"tensorbus_leads", "tensorbus_store_connected", "tensorbus_log_behind_records"} & set(
            told
        )
