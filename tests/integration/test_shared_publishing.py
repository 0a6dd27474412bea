"""What is published at a broker that does not lead goes from there into JetStream, past the leader."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncIterator, Generator
from contextlib import suppress
from itertools import pairwise
from typing import Any

import aiohttp
import numpy as np
import pytest

from storing import Gateways, NatsServers, Relay
from tensorbus import Client
from tensorbus.streaming.raw import RawEncoder

MIB = 1 << 20
FRAMES = {"Content-Type": "application/vnd.tensorbus.frames"}
TUS = {"Tus-Resumable": "1.0.0"}
PART = TUS | {"Content-Type": "application/offset+octet-stream"}
POST = "/v1/topics/big/messages"


def message(size: int) -> bytes:
    """The frames of a message of one item."""
    encoder = RawEncoder({}, "application/octet-stream", size)
    parts = [encoder.open()]
    for start in range(0, size, MIB - 2048):
        for head, payload in encoder.slices(os.urandom(min(MIB - 2048, size - start))):
            parts.append(head + bytes(payload))
    return b"".join([*parts, encoder.close()])


BODY = message(24 * MIB)


class Http:
    """Requests to one broker."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session = session
        self.url = url

    async def json(self, method: str, path: str, **given: Any) -> Any:
        """The body of an answer that all is well."""
        async with self.session.request(method, self.url + path, **given) as answer:
            assert answer.status < 300, await answer.text()
            return await answer.json()

    async def frames(self, message_id: str) -> bytes:
        """The body of a message."""
        async with self.session.get(f"{self.url}/v1/messages/{message_id}/frames") as answer:
            assert answer.status == 200, await answer.text()
            return await answer.read()

    async def received(self) -> int:
        """Bytes of request bodies that this broker got."""
        async with self.session.get(f"{self.url}/metrics") as answer:
            found = re.search(r"^tensorbus_received_bytes_total (\S+)$", await answer.text(), re.MULTILINE)
            assert found is not None
            return int(float(found[1]))

    async def open(self) -> list[dict[str, Any]]:
        """Messages that are being published."""
        return (await self.json("GET", "/v1/messages?state=open"))["messages"]

    async def until_open(self, least: int) -> str:
        """The id of the message of which at least so many bytes can be read."""
        async with asyncio.timeout(20):
            while True:
                for found in await self.open():
                    if found["bytes"] >= least:
                        return found["id"]
                await asyncio.sleep(0.02)

    async def create(self) -> str:
        """The path of a new upload of BODY."""
        headers = TUS | {"Upload-Length": str(len(BODY))}
        async with self.session.post(f"{self.url}/v1/topics/big/uploads", headers=headers) as answer:
            assert answer.status == 201, await answer.text()
            return answer.headers["Location"]

    async def add(self, path: str, at: int, data: Any, **headers: str) -> tuple[int, dict[str, str]]:
        """Status and fields of the answer to one PATCH."""
        fields = PART | {"Upload-Offset": str(at)} | headers
        async with self.session.patch(self.url + path, data=data, headers=fields) as answer:
            await answer.read()
            return answer.status, dict(answer.headers)

    async def offset(self, path: str) -> int:
        """Where an upload goes on; asked until somebody leads who knows."""
        for _ in range(100):
            with suppress(aiohttp.ClientConnectionError):
                async with self.session.head(self.url + path, headers=TUS) as answer:
                    if answer.status == 200:
                        return int(answer.headers["Upload-Offset"])
                    assert answer.status == 503
            await asyncio.sleep(0.2)
        raise AssertionError("nobody answers")


class Source:
    """A body that comes in as far as it is let."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._more = asyncio.Event()
        self._let = 0

    def let(self, size: int) -> None:
        """Send up to ``size`` bytes."""
        self._let = size
        self._more.set()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        at = 0
        while at < len(self._body):
            while at >= self._let:
                self._more.clear()
                await self._more.wait()
            part = self._body[at : min(self._let, at + 256 * 1024)]
            at += len(part)
            yield part


@pytest.fixture(scope="module")
def relay() -> Generator[Relay]:
    """The way of the other brokers to the one that leads."""
    with Relay() as running:
        yield running


@pytest.fixture(scope="module")
def gateways(
    tmp_path_factory: pytest.TempPathFactory, nats_server: NatsServers, relay: Relay
) -> Generator[Gateways]:
    """Three brokers of a new store, of which the first leads; the tests find them one after the other."""
    folder = tmp_path_factory.mktemp("shared")
    name = "p" + hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    with Gateways(folder, f"{nats_server.address}&name={name}") as running:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("TENSORBUS_ADVERTISE", relay.url)
            running.start()
        relay.target = int(running.urls[0].rpartition(":")[2])
        assert running.leader() == 0
        for _ in range(2):
            running.start()
        for number in range(3):
            running.ready(number)
        yield running
    nats_server.forget(name)


@pytest.fixture
async def brokers(gateways: Gateways) -> AsyncIterator[list[Http]]:
    """First the one that leads, then the others."""
    leader = gateways.leader()
    urls = [gateways.urls[leader], *(url for url in gateways.urls if url != gateways.urls[leader])]
    async with aiohttp.ClientSession() as session:
        yield [Http(session, url) for url in urls]


def number_of(gateways: Gateways, broker: Http) -> int:
    """The process of a broker."""
    return gateways.urls.index(broker.url)


async def test_the_leader_does_not_see_the_bytes(brokers: list[Http], relay: Relay) -> None:
    """In one request of known length or unknown, resumable, as frames, as anything, and by the library."""
    leader, other, third = brokers
    before = await leader.received(), relay.carried
    known = await other.json("POST", POST, data=BODY, headers=FRAMES)
    source = Source(BODY)
    source.let(len(BODY))
    unknown = await other.json("POST", POST, data=source, headers=FRAMES)
    path = await other.create()
    assert (await other.add(path, 0, BODY))[0] == 204
    plain = await other.json("POST", POST, data=BODY, headers={"Tensorbus-Header-Site": "a"})
    values = np.random.default_rng(1).standard_normal(3 * MIB)
    async with Client(other.url) as bus:
        sent = await bus.publish("big", {"w": values})
    assert await leader.received() == before[0]
    assert relay.carried - before[1] < 64 * 1024
    assert await other.received() > 4 * len(BODY) + values.nbytes
    for broker in brokers:
        for stored in (known["id"], unknown["id"], path.rpartition("/")[2]):
            assert await broker.frames(stored) == BODY
        assert BODY[-1000:] in await broker.frames(plain["id"])
    assert (await third.json("GET", f"/v1/messages/{plain['id']}"))["headers"] == {"site": "a"}
    assert known["seq"] + 1 == unknown["seq"]
    assert len(await third.frames(sent.id)) > values.nbytes


async def test_small_ones_are_handed_on(brokers: list[Http], relay: Relay) -> None:
    """Their bytes cost less than a conversation about them."""
    _, other, _ = brokers
    before = relay.carried
    body = message(100_000)
    stored = await other.json("POST", POST, data=body, headers=FRAMES)
    assert relay.carried - before > len(body)
    assert await other.frames(stored["id"]) == body


@pytest.mark.parametrize("elsewhere", [0, 2], ids=["the leader", "a third broker"])
async def test_a_writer_that_stood_still_spoils_nothing(
    gateways: Gateways, brokers: list[Http], elsewhere: int
) -> None:
    """Its upload goes on elsewhere meanwhile; what it still wants to write counts for nothing."""
    leader, other, _ = brokers
    path = await other.create()
    number = number_of(gateways, other)
    source = Source(BODY)
    source.let(9 * MIB + 1000)
    sending = asyncio.create_task(other.add(path, 0, source))
    await leader.until_open(8 * MIB)
    gateways.freeze(number)
    try:
        # It finds all this in its connection when it moves again, and its store where it was.
        source.let(len(BODY))
        at = await brokers[elsewhere].offset(path)
        assert 8 * MIB <= at <= 10 * MIB
        half = (at + len(BODY)) // 2
        assert (await brokers[elsewhere].add(path, at, BODY[at:half]))[0] == 204
    finally:
        gateways.thaw(number)
    status, _ = await sending
    assert status in (409, 503)
    assert await brokers[elsewhere].offset(path) == half
    assert (await brokers[elsewhere].add(path, half, BODY[half:]))[0] == 204
    for broker in brokers:
        assert await broker.frames(path.rpartition("/")[2]) == BODY


async def test_a_publisher_that_comes_again_goes_on_elsewhere(brokers: list[Http]) -> None:
    """It need not wait until the first broker notices; nothing of what that one had is asked for again."""
    leader, other, third = brokers
    path = await other.create()
    source = Source(BODY)
    source.let(9 * MIB + 1000)
    sending = asyncio.create_task(other.add(path, 0, source))
    await leader.until_open(8 * MIB)
    at = await third.offset(path)
    assert at > 8 * MIB
    assert (await sending)[0] == 409
    assert (await third.add(path, at, BODY[at:]))[0] == 204
    assert await other.frames(path.rpartition("/")[2]) == BODY


async def test_parts_come_in_at_all_brokers(brokers: list[Http]) -> None:
    """One after the other, several at the same one too, cut anywhere."""
    path = await brokers[1].create()
    cuts = [0, *(number * 3 * MIB + 12_345 for number in range(1, 8)), len(BODY)]
    for turn, (start, end) in enumerate(pairwise(cuts)):
        broker = brokers[(1, 1, 1, 2, 1, 0, 1, 1)[turn]]
        status, fields = await broker.add(path, start, BODY[start:end])
        assert (status, fields["Upload-Offset"]) == (204, str(end))
    assert await brokers[2].frames(path.rpartition("/")[2]) == BODY


async def test_two_publishers_have_the_same_key(brokers: list[Http]) -> None:
    """At two brokers, at once: one message is stored, and whoever asks is told of that one."""
    _, other, third = brokers
    headers = FRAMES | {"Idempotency-Key": "same"}
    post = "/v1/topics/twice/messages"
    source = Source(BODY)
    source.let(4 * MIB)

    async def slow() -> int:
        async with other.session.post(other.url + post, data=source, headers=headers) as answer:
            return answer.status

    first = asyncio.create_task(slow())
    await third.until_open(2 * MIB)
    stored = await third.json("POST", post, data=BODY, headers=headers)
    assert await first == 410
    assert (await other.json("POST", post, data=BODY, headers=headers))["id"] == stored["id"]
    listed = (await third.json("GET", "/v1/messages?topic=twice"))["messages"]
    assert [info["id"] for info in listed] == [stored["id"]]


async def test_it_can_be_followed_at_every_broker(brokers: list[Http]) -> None:
    """While it comes in at one of them, frame by frame, and to its end."""
    _, other, _ = brokers
    source = Source(BODY)
    source.let(3 * MIB)
    publishing = asyncio.create_task(other.json("POST", POST, data=source, headers=FRAMES))
    stored = await other.until_open(2 * MIB)
    seen = [0] * len(brokers)

    async def follow(number: int) -> bytes:
        found = bytearray()
        url = f"{brokers[number].url}/v1/messages/{stored}/frames"
        async with other.session.get(url) as answer:
            assert answer.status == 200
            async for chunk in answer.content.iter_any():
                found += chunk
                seen[number] = len(found)
        return bytes(found)

    following = [asyncio.create_task(follow(number)) for number in range(len(brokers))]
    async with asyncio.timeout(30):
        for let in (3 * MIB, 3 * MIB + 1000, 7 * MIB, 12 * MIB):
            source.let(let)
            while min(seen) < let - MIB - 2048:
                await asyncio.sleep(0.02)
            assert max(seen) <= let
        source.let(len(BODY))
        assert [await each for each in following] == [BODY] * 3
    assert (await publishing)["id"] == stored


async def test_what_is_refused_is_refused(brokers: list[Http]) -> None:
    """By a policy, for its frames, for its checksum, for its length: as if the leader had got it."""
    leader, other, _ = brokers
    await leader.json(
        "PUT", "/v1/policies/small", json={"filter": "small", "max_bytes": 4 * MIB, "discard": "new"}
    )
    source = Source(BODY)
    source.let(len(BODY))
    bad = bytearray(BODY)
    bad[5 * MIB] ^= 1
    cut = BODY[: 6 * MIB]
    for topic, body in (("small", source), ("small", BODY), ("big", bytes(bad)), ("big", cut)):
        said: list[tuple[int, str]] = []
        for broker in (other, leader):
            url = f"{broker.url}/v1/topics/{topic}/messages"
            async with broker.session.post(url, data=body, headers=FRAMES) as answer:
                said.append((answer.status, (await answer.json(content_type=None))["type"]))
        assert said[0] == said[1]
        assert said[0][0] >= 400
    path = await other.create()
    wrong = {"Upload-Checksum": "sha1 " + "A" * 27 + "="}
    assert (await other.add(path, 0, BODY[: 5 * MIB], **wrong))[0] == 460
    assert await other.offset(path) == 0
    assert (await other.add(path, 0, BODY[: 5 * MIB]))[0] == 204
    assert (await other.add(path, 1, BODY[5 * MIB :]))[0] == 409
    assert (await other.add(path, 5 * MIB, BODY))[0] == 413
    assert (await other.add(path, 5 * MIB, BODY[5 * MIB :]))[0] == 204
    assert await leader.frames(path.rpartition("/")[2]) == BODY
    assert await leader.open() == []


async def test_what_cannot_be_listed_can_come_again(brokers: list[Http]) -> None:
    """A policy that came meanwhile leaves no room for it; all but its last frame is kept."""
    leader, other, third = brokers
    policy = f"{leader.url}/v1/policies/full"
    await third.json("POST", "/v1/topics/full/messages", data=b"x")
    headers = TUS | {"Upload-Length": str(len(BODY))}
    async with other.session.post(f"{other.url}/v1/topics/full/uploads", headers=headers) as answer:
        path = answer.headers["Location"]
    source = Source(BODY)
    source.let(20 * MIB)
    sending = asyncio.create_task(other.add(path, 0, source))
    await leader.until_open(8 * MIB)
    await third.json("PUT", "/v1/policies/full", json={"filter": "full", "max_messages": 1, "discard": "new"})
    source.let(len(BODY))
    assert (await sending)[0] == 507
    at = await other.offset(path)
    assert len(BODY) - 1000 < at < len(BODY)
    async with leader.session.delete(policy) as answer:
        assert answer.status == 204
    assert (await third.add(path, at, BODY[at:]))[0] == 204
    assert await other.frames(path.rpartition("/")[2]) == BODY


async def test_it_is_given_up(brokers: list[Http]) -> None:
    """The publisher leaves, or somebody deletes it: the writer hears of it, and nothing stays open."""
    leader, other, third = brokers
    for deleted in (False, True):
        source = Source(BODY)
        source.let(4 * MIB)
        sending = asyncio.create_task(other.session.post(other.url + POST, data=source, headers=FRAMES))
        stored = await third.until_open(2 * MIB)
        if deleted:
            async with third.session.delete(f"{third.url}/v1/messages/{stored}") as answer:
                assert answer.status == 204
            assert (await sending).status == 410
        else:
            sending.cancel()
        async with asyncio.timeout(10):
            while await leader.open():
                await asyncio.sleep(0.02)
        async with third.session.get(f"{third.url}/v1/messages/{stored}") as answer:
            assert answer.status == 404


async def test_only_brokers_of_the_store_may_say_what_is_stored(brokers: list[Http]) -> None:
    """Whoever does not know their secret is turned away before anything is begun."""
    for broker in brokers:
        headers = FRAMES | {"Tensorbus-Writer": "guessed", "Tensorbus-Forwarded": "1"}
        async with broker.session.post(broker.url + POST, data=BODY, headers=headers) as answer:
            assert answer.status == 503
    assert await brokers[0].open() == []


async def test_the_writer_is_killed_and_then_the_leader(gateways: Gateways, brokers: list[Http]) -> None:
    """What they have stored is kept; the rest comes in at a third broker. This ends two of three."""
    leader, other, third = brokers
    path = await other.create()
    source = Source(BODY)
    source.let(10 * MIB)
    sending = asyncio.create_task(other.add(path, 0, source))
    await leader.until_open(8 * MIB)
    gateways.kill(number_of(gateways, other))
    with pytest.raises(aiohttp.ClientError):
        await sending
    at = await third.offset(path)
    assert 8 * MIB <= at <= 10 * MIB
    source = Source(BODY[at:])
    source.let(8 * MIB)
    sending = asyncio.create_task(third.add(path, at, source))
    await leader.until_open(at + 6 * MIB)
    gateways.kill(number_of(gateways, leader))
    # It hears of that when another one leads.
    assert (await sending)[0] == 503
    assert (further := await third.offset(path)) >= at + 6 * MIB
    assert (await third.add(path, further, BODY[further:]))[0] == 204
    assert await third.frames(path.rpartition("/")[2]) == BODY
