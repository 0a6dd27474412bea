"""A broker is told to stop while its NATS servers do not answer: it does, and keeps what it promised."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Generator
from pathlib import Path
from typing import Literal

import aiohttp
import pytest

from storing import Gateways, NatsServers
from tensorbus.bus.client import Client, ClientSettings
from tensorbus.bus.client.publishing import Receipt
from tensorbus.errors import BrokerUnavailable

OPTIONS = ("--shutdown-timeout", "1")


@pytest.fixture
def server(tmp_path: Path) -> Generator[NatsServers]:
    """One for one test, which ends it."""
    with NatsServers(tmp_path / "nats") as running:
        yield running


async def post(bus: aiohttp.ClientSession, path: str, body: bytes = b"", key: str | None = None) -> int:
    """The status of the answer; 0 if there is none."""
    try:
        headers = {} if key is None else {"Idempotency-Key": key}
        async with bus.post(path, data=body, headers=headers) as answer:
            return answer.status
    except aiohttp.ClientError:
        return 0


async def upload(url: str, content: bytes) -> Receipt | None:
    """The receipt of a message that is published in parts; None if the broker goes away meanwhile."""
    async with Client(url, settings=ClientSettings(retry_for=0.5)) as bus:
        try:
            return await bus.publish("t", content, key="upload")
        except BrokerUnavailable:
            return None


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_a_broker_stops_though_nobody_answers_it(
    tmp_path: Path, server: NatsServers, how: Literal["killed", "frozen"]
) -> None:
    """With publishes, an upload and a settlement under way, of which none is acknowledged."""
    with Gateways(tmp_path, server.address, options=OPTIONS) as gateways:
        gateways.ready(gateways.start())
        large = hashlib.sha256(b"x").digest() * 60_000
        async with aiohttp.ClientSession(gateways.urls[0]) as bus:
            async with bus.put("/v1/consumers/c", json={"filter": "t"}) as answer:
                assert answer.status < 300
            for number in range(3):
                assert await post(bus, "/v1/topics/t/messages", b"%d" % number, f"{number}") == 201
            assert await post(bus, "/v1/topics/t/messages", large, "large") == 201
            async with bus.post("/v1/consumers/c/deliveries", json={"max": 2}) as answer:
                first, second = [each["token"] for each in (await answer.json())["deliveries"]]
            assert await post(bus, f"/v1/consumers/c/deliveries/{first}/ack") == 204
            (server.kill if how == "killed" else server.freeze)(0)
            waiting = [
                asyncio.create_task(post(bus, "/v1/topics/t/messages", b"new", "new")),
                asyncio.create_task(post(bus, "/v1/topics/t/messages", large, "new-large")),
                asyncio.create_task(post(bus, f"/v1/consumers/c/deliveries/{second}/ack")),
            ]
            uploading = asyncio.create_task(upload(gateways.urls[0], large * 4))
            await asyncio.sleep(1)
            assert not any(task.done() for task in (*waiting, uploading))
            assert await asyncio.to_thread(gateways.stop, 0) == 0
            assert {await task for task in waiting} <= {0, 503}
            assert await uploading is None
        said = gateways.log(0)
        assert "does not answer, and this broker stops" in said
        assert "Traceback" not in said
        assert said.rstrip().endswith("stopped")
        (server.start if how == "killed" else server.thaw)(0)
        await asyncio.to_thread(server.wait)
        gateways.ready(gateways.start())
        async with aiohttp.ClientSession(gateways.urls[1]) as bus:
            for number in range(3):
                assert await post(bus, "/v1/topics/t/messages", b"%d" % number, f"{number}") == 200
            assert await post(bus, "/v1/topics/t/messages", large, "large") == 200
            assert await post(bus, f"/v1/consumers/c/deliveries/{first}/ack") == 409
            assert await post(bus, f"/v1/consumers/c/deliveries/{second}/ack") in (204, 409)
            assert await post(bus, "/v1/topics/t/messages", b"new", "new") in (200, 201)
            assert await post(bus, "/v1/topics/t/messages", large, "new-large") in (200, 201)
            assert await upload(gateways.urls[1], large * 4) is not None
            async with bus.get("/v1/topics") as answer:
                assert (await answer.json())["topics"][0]["messages"] == 7
