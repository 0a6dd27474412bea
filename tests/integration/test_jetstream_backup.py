"""Backup of the store in JetStream, as docs/operating.md has it: brokers stopped, both streams saved.

What `nats stream backup` and `nats stream restore` do is asked of the servers here, by their own API.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client

from storing import NatsServers
from storing.bodies import frames, publish, read
from tensorbus.bus.broker import Broker, BrokerSettings
from tensorbus.bus.consumers import ConsumerConfig
from tensorbus.bus.policies import PolicyConfig
from tensorbus.bus.stores.jetstream import JetStreamSettings, JetStreamStore

SETTINGS = BrokerSettings(sweep_interval=0)
STREAMS = ("tensorbus_log", "tensorbus_frames")
CHUNK = 128 << 10
PATIENCE = 30.0

Saved = tuple[dict[str, Any], list[bytes]]
"""Of one stream: its configuration and state, and what is in it."""


async def save(client: Client, stream: str) -> Saved:
    """`nats stream backup`."""
    chunks: list[bytes] = []
    inbox = client.new_inbox()
    coming = await client.subscribe(inbox)  # pyright: ignore[reportUnknownMemberType]
    asked = {"deliver_subject": inbox, "chunk_size": CHUNK}
    about = await _ask(client, f"SNAPSHOT.{stream}", json.dumps(asked).encode())
    while chunk := (message := await coming.next_msg(PATIENCE)).data:
        chunks.append(chunk)
        if message.reply:
            await message.respond(b"")  # more, please
    await coming.unsubscribe()
    return {"config": about["config"], "state": about["state"]}, chunks


async def restore(client: Client, stream: str, saved: Saved) -> None:
    """`nats stream restore`."""
    about, chunks = saved
    taken = await _ask(client, f"RESTORE.{stream}", json.dumps(about).encode())
    for chunk in chunks:
        await client.request(taken["deliver_subject"], chunk, timeout=PATIENCE)
    answer = await client.request(taken["deliver_subject"], b"", timeout=PATIENCE)
    assert json.loads(answer.data)["config"]["name"] == stream


async def _ask(client: Client, what: str, body: bytes) -> dict[str, Any]:
    answer = await client.request(f"$JS.API.STREAM.{what}", body, timeout=PATIENCE)
    told: dict[str, Any] = json.loads(answer.data)
    assert "error" not in told, told["error"]
    return told


@asynccontextmanager
async def connected(servers: NatsServers) -> AsyncGenerator[Client]:
    """A client of them."""
    client = await nats.connect(servers.address.partition("?")[0])  # pyright: ignore[reportUnknownMemberType]
    try:
        yield client
    finally:
        await client.close()


def store_on(servers: NatsServers) -> JetStreamStore:
    """The store there."""
    return JetStreamStore(JetStreamSettings.parse(servers.address))


@pytest.mark.parametrize("shortened", [False, True], ids=["log", "snapshot"])
async def test_servers_that_were_lost_are_restored_from_a_backup(tmp_path: Path, shortened: bool) -> None:
    """Messages, keys, policies and consumers are as they were then, and a broker goes on from there."""
    small, large = frames(100), frames(1_300_000)
    with NatsServers(tmp_path / "first") as servers:
        store = store_on(servers)
        async with Broker(store, SETTINGS) as broker:
            kept = [await publish(broker, body, f"{n}") for n, body in enumerate((small, large))]
            await broker.put_policy("notes", PolicyConfig("notes.>", max_messages=9))
            await broker.ensure_consumer("reader", ConsumerConfig(">"))
            (first,) = await broker.pull("reader")
            await broker.ack("reader", first.token)
            if shortened:
                await store.shorten()
        async with connected(servers) as client:
            saved = {stream: await save(client, stream) for stream in STREAMS}
        async with Broker(store_on(servers), SETTINGS) as broker:
            await publish(broker, small, "after")
    with NatsServers(tmp_path / "second") as servers:
        async with connected(servers) as client:
            for stream in STREAMS:
                await restore(client, stream, saved[stream])
        async with asyncio.timeout(PATIENCE), Broker(store_on(servers), SETTINGS) as broker:
            assert [await read(broker, each.id) for each in kept] == [small, large]
            assert [info.key for info in (await broker.messages()).messages] == ["0", "1"]
            assert (await publish(broker, small, "0")).duplicate
            assert [policy.name for policy in await broker.policies()] == ["notes"]
            (second,) = await broker.pull("reader")
            assert second.message.id == kept[1].id, "what was settled before does not come again"
            later = await publish(broker, small, "later")
            assert later.seq == 3
            assert (await broker.damaged()).damaged == ()
