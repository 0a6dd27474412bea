"""Brokers that share a JetStream, as processes: any of them will do, and any of them may die."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from storing import Gateways, NatsServers
from tensorbus import Client

MIB = 1 << 20
SOME = os.urandom(3 * MIB)


class Http:
    """Requests to one broker, each made again while it begins anew or none leads."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def send(self, method: str, path: str, **given: Any) -> tuple[int, bytes]:
        """Status and body of the answer."""
        for _ in range(100):
            with suppress(aiohttp.ClientConnectorError):
                async with self._session.request(method, self._url + path, **given) as answer:
                    if answer.status != 503:
                        return answer.status, await answer.read()
            await asyncio.sleep(0.2)
        raise AssertionError(f"{method} {path}: nobody answers")

    async def json(self, method: str, path: str, **given: Any) -> Any:
        """The body of an answer that all is well."""
        async with self._session.request(method, self._url + path, **given) as answer:
            assert answer.status < 300, await answer.text()
            return await answer.json()

    async def publish(self, topic: str, body: bytes, key: str) -> str:
        """The id of a message."""
        headers = {"Idempotency-Key": key}
        receipt = await self.json("POST", f"/v1/topics/{topic}/messages", data=body, headers=headers)
        return receipt["id"]

    async def pull(self, wait: float = 5) -> tuple[str, str]:
        """The token and the message of the next delivery of the consumer ``c``."""
        wanted = {"max": 1, "wait": wait}
        answer = await self.json("POST", "/v1/consumers/c/deliveries", json=wanted)
        (delivery,) = answer["deliveries"]
        return delivery["token"], delivery["message"]["id"]

    async def ack(self, token: str) -> int:
        """The status of a settlement."""
        return (await self.send("POST", f"/v1/consumers/c/deliveries/{token}/ack"))[0]


@pytest.fixture
def gateways(tmp_path: Path, nats_server: NatsServers) -> Generator[Gateways]:
    """Two brokers of a new store, of which one leads."""
    name = "g" + hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]
    with Gateways(tmp_path, f"{nats_server.address}&name={name}") as running:
        for _ in range(2):
            running.start()
        running.leader()
        for number in range(2):
            running.ready(number)
        yield running


async def test_what_is_stored_at_one_is_there_at_the_other(gateways: Gateways) -> None:
    """At once: by its id, in the list, as a whole and in part; and its key is known."""
    async with aiohttp.ClientSession() as session:
        here, there = (Http(session, url) for url in gateways.urls)
        for turn, (one, other) in enumerate([(here, there), (there, here)] * 3):
            stored = await one.publish("a.b", SOME, f"key-{turn}")
            assert (await other.json("GET", f"/v1/messages/{stored}"))["topic"] == "a.b"
            assert await other.publish("a.b", SOME, f"key-{turn}") == stored
            listed = await other.json("GET", "/v1/messages?limit=1&order=desc")
            assert listed["messages"][0]["id"] == stored
            _, frames = await other.send("GET", f"/v1/messages/{stored}/frames")
            assert SOME[:1000] in frames
            part = await other.send(
                "GET", f"/v1/messages/{stored}/frames", headers={"Range": "bytes=1500000-2600000"}
            )
            assert part == (206, frames[1_500_000:2_600_001])


async def test_a_refusal_is_the_leaders_own(gateways: Gateways) -> None:
    """With its status and its reason, through a gateway too, however large the body is."""
    follower = gateways.urls[1 - gateways.leader()]
    async with aiohttp.ClientSession() as session:
        http = Http(session, follower)
        for body in (b"x", SOME * 10):
            status, said = await http.send("POST", "/v1/topics/not..one/messages", data=body)
            assert status == 400
            assert b"not..one" in said
        assert (await http.send("GET", f"/v1/messages/{'0' * 32}"))[0] == 404
        assert (await http.send("PUT", "/v1/consumers/c", json={"filter": "a..b"}))[0] == 400
        assert (await http.send("DELETE", "/v1/consumers/none"))[0] == 404
        assert (await http.send("GET", "/v1/nowhere"))[0] == 404


async def test_a_consumer_is_the_same_at_all(gateways: Gateways) -> None:
    """What is handed over at one can be settled at the other, once."""
    async with aiohttp.ClientSession() as session:
        here, there = (Http(session, url) for url in gateways.urls)
        await here.json("PUT", "/v1/consumers/c", json={"filter": "jobs"})
        published = [await here.publish("jobs", b"%d" % number, f"{number}") for number in range(10)]
        pulled: list[str] = []
        for turn in range(10):
            pulling, settling = ((here, there), (there, here))[turn % 2]
            token, message = await pulling.pull()
            pulled.append(message)
            assert await settling.ack(token) == 204
            assert await pulling.ack(token) == 409
        assert pulled == published


async def test_the_leader_may_be_killed(gateways: Gateways) -> None:
    """Nothing that was acknowledged is lost or doubled: messages, keys, settlements, deliveries."""
    leader = gateways.leader()
    async with aiohttp.ClientSession() as session:
        other = Http(session, gateways.urls[1 - leader])
        await other.json("PUT", "/v1/consumers/c", json={"filter": "jobs", "ack_wait": 3})
        published = [await other.publish("jobs", b"%d" % number, f"{number}") for number in range(20)]
        settled: list[str] = []
        for _ in range(8):
            token, message = await other.pull()
            assert await other.ack(token) == 204
            settled.append(message)
        held = [await other.pull() for _ in range(2)]
        gateways.kill(leader)
        gateways.ready(1 - leader)
        # What was handed over before is settled with the tokens of before.
        assert await other.ack(held[0][0]) == 204
        settled.append(held[0][1])
        assert await other.publish("jobs", b"3", "3") == published[3]
        while len(settled) < 20:
            token, message = await other.pull(wait=10)
            assert await other.ack(token) == 204
            settled.append(message)
        assert sorted(settled) == sorted(published)
        assert (await other.json("GET", "/v1/consumers/c"))["backlog"] == 0


async def test_an_upload_goes_on_at_another_broker(gateways: Gateways) -> None:
    """The one that takes it is killed in the midst; the publisher notices a pause."""
    leader = gateways.leader()
    values = np.random.default_rng(0).standard_normal(192 * MIB // 8)
    async with aiohttp.ClientSession() as session, Client(gateways.urls[1 - leader]) as bus:
        publishing = asyncio.create_task(bus.publish("big", {"w": values}, key="big"))
        http = Http(session, gateways.urls[leader])
        while True:
            answer = await http.json("GET", "/v1/messages?state=open")
            if answer["messages"] and answer["messages"][0]["bytes"] > 8 * MIB:
                break
            await asyncio.sleep(0.01)
        gateways.kill(leader)
        receipt = await publishing
        assert receipt.resumed > 0
        _, frames = await Http(session, gateways.urls[1 - leader]).send(
            "GET", f"/v1/messages/{receipt.id}/frames"
        )
        assert len(frames) > values.nbytes
        assert values[:1000].tobytes() in frames
        assert values[-10:].tobytes() in frames


async def test_a_broker_that_was_taken_for_dead_does_no_harm(gateways: Gateways) -> None:
    """It stands still, another takes the lead, it goes on: what it says then counts for nothing."""
    leader = gateways.leader()
    async with aiohttp.ClientSession() as session:
        old, new = (Http(session, gateways.urls[number]) for number in (leader, 1 - leader))
        await old.json("PUT", "/v1/consumers/c", json={"filter": "jobs"})
        published = [await old.publish("jobs", b"%d" % number, f"{number}") for number in range(4)]
        token, message = await old.pull()
        gateways.freeze(leader)
        gateways.ready(1 - leader)
        assert await new.ack(token) == 204
        gateways.thaw(leader)
        assert await old.ack(token) == 409
        gateways.ready(leader)
        assert gateways.leader() == 1 - leader
        rest: list[str] = []
        for turn in range(3):
            token, each = await (old, new)[turn % 2].pull()
            assert await new.ack(token) == 204
            rest.append(each)
        assert [message, *rest] == published


async def test_a_broker_that_comes_later_has_everything(gateways: Gateways) -> None:
    """And can lead when all others are gone."""
    async with aiohttp.ClientSession() as session:
        stored = await Http(session, gateways.urls[0]).publish("a", SOME, "k")
        late = gateways.start()
        for number in (0, 1):
            gateways.kill(number)
        assert gateways.leader() == late
        http = Http(session, gateways.urls[late])
        _, frames = await http.send("GET", f"/v1/messages/{stored}/frames")
        assert SOME[:1000] in frames
        assert (await http.json("GET", "/v1/topics"))["topics"][0]["messages"] == 1
