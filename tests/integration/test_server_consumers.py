"""Durable consumers over HTTP: what a worker in any language may rely on."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tensorbus.bus.testing import running_broker

PULL = "/v1/consumers/aggregator/deliveries"
WANTED = {"filter": "fl.*.updates", "ack_wait": 60}


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a broker of its own."""
    async with running_broker(tmp_path) as url, aiohttp.ClientSession(url) as session:
        yield session


async def call(http: aiohttp.ClientSession, method: str, path: str, body: object = None) -> tuple[int, Any]:
    """Status and JSON of the answer; None where there is no body."""
    async with http.request(method, path, json=body) as answer:
        text = await answer.read()
        return answer.status, await answer.json(content_type=None) if text else None


async def publish(http: aiohttp.ClientSession, text: str = "hello") -> str:
    """Publish a plain text; returns the message's id."""
    async with http.post("/v1/topics/fl.sft.updates/messages", data=text) as answer:
        assert answer.status == 201
        return (await answer.json())["id"]


async def pulled(http: aiohttp.ClientSession, **wanted: object) -> list[dict[str, Any]]:
    """Deliveries; does not wait unless told."""
    status, document = await call(http, "POST", PULL, {"wait": 0, **wanted})
    assert status == 200
    return document["deliveries"]


async def test_a_consumer_is_created_once(http: aiohttp.ClientSession) -> None:
    """201 when it is new, 200 when it is there as wanted, 409 when it is there otherwise."""
    status, info = await call(http, "PUT", "/v1/consumers/aggregator", WANTED)
    assert (status, info["name"], info["filter"], info["ack_wait"]) == (201, "aggregator", "fl.*.updates", 60)
    assert (await call(http, "PUT", "/v1/consumers/aggregator", WANTED))[0] == 200
    status, problem = await call(http, "PUT", "/v1/consumers/aggregator", {"filter": "fl.>"})
    assert (status, problem["type"]) == (409, "urn:tensorbus:problem:conflict")
    assert [c["name"] for c in (await call(http, "GET", "/v1/consumers"))[1]["consumers"]] == ["aggregator"]


async def test_a_consumer_is_forgotten_on_request(http: aiohttp.ClientSession) -> None:
    """DELETE answers 204, and the consumer is unknown from then on."""
    await call(http, "PUT", "/v1/consumers/aggregator", WANTED)
    assert (await call(http, "DELETE", "/v1/consumers/aggregator"))[0] == 204
    for method, path in (
        ("GET", "/v1/consumers/aggregator"),
        ("DELETE", "/v1/consumers/aggregator"),
        ("POST", PULL),
    ):
        assert (await call(http, method, path))[0] == 404


async def test_a_delivery_is_acknowledged_once(http: aiohttp.ClientSession) -> None:
    """ack answers 204; a second one 409; the message does not come again."""
    name = await publish(http)
    await call(http, "PUT", "/v1/consumers/aggregator", WANTED)
    [delivery] = await pulled(http)
    assert (delivery["message"]["id"], delivery["attempt"], delivery["consumer"]) == (name, 1, "aggregator")
    settle = f"{PULL}/{delivery['token']}"
    assert (await call(http, "POST", f"{settle}/in_progress"))[0] == 204
    assert await call(http, "POST", f"{settle}/ack") == (204, None)
    for verb in ("ack", "nak", "term", "in_progress"):
        status, problem = await call(http, "POST", f"{settle}/{verb}")
        assert (status, problem["type"]) == (409, "urn:tensorbus:problem:already-settled")
    assert await pulled(http) == []


async def test_a_delivery_belongs_to_its_consumer(http: aiohttp.ClientSession) -> None:
    """Settling with a made-up token, or for another consumer, is 404 and changes nothing."""
    await publish(http)
    await call(http, "PUT", "/v1/consumers/aggregator", WANTED)
    await call(http, "PUT", "/v1/consumers/other", WANTED)
    [delivery] = await pulled(http)
    for path in (f"/v1/consumers/other/deliveries/{delivery['token']}/ack", f"{PULL}/nonsense/ack"):
        assert (await call(http, "POST", path))[0] == 404
    assert (await call(http, "POST", f"{PULL}/{delivery['token']}/ack"))[0] == 204


async def test_a_refused_delivery_comes_again(http: aiohttp.ClientSession) -> None:
    """nak hands the message over again, counted as the next attempt; term never again."""
    await publish(http)
    await call(http, "PUT", "/v1/consumers/aggregator", WANTED)
    [first] = await pulled(http)
    assert (await call(http, "POST", f"{PULL}/{first['token']}/nak", {"delay": 0}))[0] == 204
    [second] = await pulled(http, wait=5)
    assert second["attempt"] == 2
    assert (await call(http, "POST", f"{PULL}/{second['token']}/term"))[0] == 204
    assert await pulled(http) == []


async def test_a_long_poll_ends_when_a_message_comes(http: aiohttp.ClientSession) -> None:
    """A pull that waits is answered as soon as a message is sealed."""
    await call(http, "PUT", "/v1/consumers/aggregator", WANTED)
    waiting = asyncio.create_task(pulled(http, wait=30))
    name = await publish(http)
    assert [delivery["message"]["id"] for delivery in await waiting] == [name]


async def test_a_worker_that_leaves_while_it_waits_takes_nothing_along(http: aiohttp.ClientSession) -> None:
    """A closed long poll is not answered with a message that then has to wait for ack_wait."""
    await call(http, "PUT", "/v1/consumers/aggregator", WANTED)
    waiting = asyncio.create_task(pulled(http, wait=30))
    while await requests_in_flight(http) < 1:
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    name = await publish(http)
    assert [delivery["message"]["id"] for delivery in await pulled(http, wait=10)] == [name]


async def requests_in_flight(http: aiohttp.ClientSession) -> int:
    """Requests that this test sent and has no answer for."""
    connector = http.connector
    assert connector is not None
    return len(connector._acquired)  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("PUT", "/v1/consumers/a.b", WANTED, 400),
        ("PUT", "/v1/consumers/" + "a" * 65, WANTED, 400),
        ("PUT", "/v1/consumers/a", {}, 400),
        ("PUT", "/v1/consumers/a", [], 400),
        ("PUT", "/v1/consumers/a", {"filter": "a..b"}, 400),
        ("PUT", "/v1/consumers/a", {"filter": ">", "ack_wait": "long"}, 400),
        ("PUT", "/v1/consumers/a", {"filter": ">", "ack_wait": -1}, 400),
        ("PUT", "/v1/consumers/a", {"filter": ">", "colour": "red"}, 400),
        ("PUT", "/v1/consumers/a", {"filter": "x" * 70_000}, 413),
        ("POST", PULL, {"max": 0}, 400),
        ("POST", PULL, {"max": 10**9}, 400),
        ("POST", PULL, {"wait": 1e9}, 400),
        ("POST", PULL, {"inline": -1}, 400),
        ("POST", PULL, {"inline": 1 << 21}, 400),
        ("PUT", "/v1/consumers/a", {"filter": ">", "start": {"seq": 0}}, 400),
        ("PUT", "/v1/consumers/a", {"filter": ">", "start": {"time": "2999-01-01T00:00:00Z"}}, 400),
        ("PUT", "/v1/consumers/a", {"filter": ">", "start": {"time": "0001-01-01T00:00:00+23:59"}}, 400),
        ("PUT", "/v1/consumers/a", {"filter": ">", "start": {"time": "9999-12-31T23:59:59-23:59"}}, 400),
        ("PUT", "/v1/consumers/a", {"filter": ">", "backoff": [1, 2], "max_deliver": 1}, 400),
        ("PUT", "/v1/consumers/a", {"filter": ">", "dead_letter": "a.>"}, 400),
        ("DELETE", "/v1/dead-letters", None, 400),
        ("GET", "/v1/dead-letters?limit=0", None, 400),
        ("POST", "/v1/messages/x/replay", None, 400),
    ],
)
async def test_malformed_requests_are_explained(
    http: aiohttp.ClientSession, method: str, path: str, body: object, status: int
) -> None:
    """400 or 413 with a problem document; nothing is created."""
    got, problem = await call(http, method, path, body)
    assert got == status
    assert problem["detail"]
    assert (await call(http, "GET", "/v1/consumers"))[1] == {"consumers": []}


@pytest.mark.parametrize("body", [b"{", b"[" * 60_000, b"\xff", b'{"max": NaN}'])
async def test_bodies_that_are_no_json_are_explained(http: aiohttp.ClientSession, body: bytes) -> None:
    """400, also for a body nested so deeply that a naive parser would fall over."""
    async with http.post(PULL, data=body, headers={"Content-Type": "application/json"}) as answer:
        assert answer.status == 400
        assert answer.content_type == "application/problem+json"


async def test_a_small_message_comes_with_its_delivery(http: aiohttp.ClientSession) -> None:
    """With ``inline``, the frames are in the answer, in base64, as they would be downloaded."""
    name = await publish(http)
    await call(http, "PUT", "/v1/consumers/aggregator", WANTED)
    [delivery] = await pulled(http, inline=65536)
    async with http.get(f"/v1/messages/{name}/frames") as answer:
        assert base64.b64decode(delivery["frames"]) == await answer.read()
    await call(http, "POST", f"{PULL}/{delivery['token']}/nak")
    [again] = await pulled(http)
    assert "frames" not in again


async def test_many_are_settled_in_one_request(http: aiohttp.ClientSession) -> None:
    """The answer names those that failed and why; the others are done."""
    for _ in range(3):
        await publish(http)
    await call(http, "PUT", "/v1/consumers/aggregator", WANTED)
    tokens = [delivery["token"] for delivery in await pulled(http, max=3)]
    where = "/v1/consumers/aggregator"
    assert await call(http, "POST", f"{where}/in_progress", {"tokens": tokens}) == (200, {"failed": []})
    given_back = {"tokens": tokens[:1], "delay": 60, "unread": True}
    assert await call(http, "POST", f"{where}/naks", given_back) == (200, {"failed": []})
    status, outcomes = await call(http, "POST", f"{where}/acks", {"tokens": [*tokens, "made-up"]})
    assert status == 200
    assert [(failed["token"], failed["status"], failed["type"]) for failed in outcomes["failed"]] == [
        (tokens[0], 409, "urn:tensorbus:problem:delivery-expired"),
        ("made-up", 404, "urn:tensorbus:problem:not-found"),
    ]
    bad: list[object] = [{}, {"tokens": []}, {"tokens": "x"}, {"tokens": [1]}, {"tokens": ["x"] * 257}]
    for wrong in bad:
        assert (await call(http, "POST", f"{where}/acks", wrong))[0] == 400
    assert (await call(http, "POST", "/v1/consumers/nobody/acks", {"tokens": tokens}))[0] == 404


async def test_dead_letters_are_listed_replayed_and_removed(http: aiohttp.ClientSession) -> None:
    """A refused message lies on the dead-letter topic with a note; curl can bring it back or remove it."""
    name = await publish(http)
    await publish(http)
    await call(http, "PUT", "/v1/consumers/aggregator", WANTED)
    for delivery in await pulled(http, max=2):
        refused = await call(http, "POST", f"{PULL}/{delivery['token']}/term", {"reason": "no good"})
        assert refused == (204, None)
    status, page = await call(http, "GET", "/v1/dead-letters?topic=dead.aggregator")
    first, second = page["messages"]
    assert (status, first["dead"]["message"], first["dead"]["reason"]) == (200, name, "no good")
    status, again = await call(http, "POST", f"/v1/messages/{first['id']}/replay")
    assert (status, again["topic"], again["dead"]) == (201, "fl.sft.updates", None)
    assert [delivery["message"]["id"] for delivery in await pulled(http, max=9)] == [again["id"]]
    assert (await call(http, "POST", f"/v1/messages/{again['id']}/replay"))[0] == 409
    assert (await call(http, "POST", f"/v1/messages/{first['id']}/replay"))[0] == 404
    status, everyone = await call(http, "POST", f"/v1/messages/{second['id']}/replay", {"everyone": True})
    assert (status, everyone["topic"]) == (201, "fl.sft.updates")
    assert await call(http, "DELETE", "/v1/dead-letters?topic=dead.*") == (200, {"removed": 0})
