"""A stream of deliveries: pushed as they come, no more than the reader can take, and none of them lost."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest

from tensorbus.bus.access import Rights, TokenFile, TokenPlan
from tensorbus.bus.client import Client, ClientSettings
from tensorbus.bus.server import ServerSettings
from tensorbus.bus.streams import MEDIA_TYPE, RecordParser
from tensorbus.bus.testing import running_broker

CONSUMER = "/v1/consumers/worker"
STREAM = f"{CONSUMER}/deliveries/stream"
PROMPT = 10.0
"""Seconds within which what is due has to come; tests end sooner."""
SHORT = 0.3
"""Seconds after which a delivery that must not come is taken as not coming."""


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a broker of its own."""
    async with running_broker(tmp_path) as url, aiohttp.ClientSession(url) as session:
        yield session


async def make(http: aiohttp.ClientSession, **config: object) -> None:
    """The consumer."""
    async with http.put(CONSUMER, json={"filter": "notes.>", **config}) as answer:
        assert answer.status == 201


async def publish(http: aiohttp.ClientSession, text: str | bytes) -> str:
    """A message; its id."""
    async with http.post("/v1/topics/notes.a/messages", data=text) as answer:
        assert answer.status == 201
        return (await answer.json())["id"]


async def settle(http: aiohttp.ClientSession, verb: str, *lines: dict[str, Any]) -> None:
    """Acknowledge or give back what some lines brought."""
    tokens = [line["delivery"]["token"] for line in lines]
    async with http.post(f"{CONSUMER}/{verb}", json={"tokens": tokens}) as answer:
        assert (answer.status, await answer.json()) == (200, {"failed": []})


async def info(http: aiohttp.ClientSession) -> dict[str, Any]:
    """What is said of the consumer."""
    async with http.get(CONSUMER) as answer:
        return await answer.json()


class Lines:
    """The lines of a stream, signs of life left out."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer

    async def next(self, patience: float = PROMPT) -> dict[str, Any]:
        """The next one; {} at the end. Raises TimeoutError."""
        async with asyncio.timeout(patience):
            while True:
                line = await self.answer.content.readline()
                document: dict[str, Any] = json.loads(line) if line else {}
                if "heartbeat" not in document:
                    return document

    async def nothing(self) -> None:
        """Nothing comes."""
        with pytest.raises(TimeoutError):
            await self.next(SHORT)


@asynccontextmanager
async def stream(http: aiohttp.ClientSession, query: str = "") -> AsyncGenerator[Lines]:
    """An open stream."""
    async with http.get(f"{STREAM}?{query}") as answer:
        assert answer.status == 200
        yield Lines(answer)


def ids(lines: list[dict[str, Any]]) -> list[str]:
    """The messages' ids."""
    return [line["delivery"]["message"]["id"] for line in lines]


async def test_deliveries_are_pushed(http: aiohttp.ClientSession) -> None:
    """What is there comes first, then what is published, in order, once each, with the frames asked for."""
    await make(http)
    there = [await publish(http, "one"), await publish(http, "two")]
    async with stream(http, "inline=1000") as lines:
        assert lines.answer.content_type == "application/jsonl"
        got = [await lines.next() for _ in there]
        there.append(await publish(http, "three"))
        got.append(await lines.next())
        assert ids(got) == there
        assert all(line["delivery"]["frames"] for line in got)
        await settle(http, "acks", *got)
        await lines.nothing()
    assert (await info(http))["ack_pending"] == 0


async def test_a_program_gets_records_and_a_browser_events(http: aiohttp.ClientSession) -> None:
    """The same deliveries in the form that is asked for; without any, a sign of life."""
    await make(http)
    async with http.get(STREAM, headers={"Accept": MEDIA_TYPE}) as answer:
        parser = RecordParser()
        assert answer.content_type == MEDIA_TYPE
        assert list(parser.feed(await answer.content.readany())) == [({}, b"")]
        name = await publish(http, "one")
        ((head, frames),) = parser.feed(await answer.content.readany())
        assert cast("Any", head)["delivery"]["message"]["id"] == name
        assert frames == b""
    name = await publish(http, "two")
    async with http.get(f"{STREAM}?wait=0", headers={"Accept": "text/event-stream"}) as answer:
        assert answer.content_type == "text/event-stream"
        event, token, data, *_ = (await answer.text()).splitlines()
        assert event == "event: delivery" and token.startswith("id: ")
        assert json.loads(data.removeprefix("data: "))["message"]["id"] == name


async def test_a_stream_carries_as_many_as_are_settled(http: aiohttp.ClientSession) -> None:
    """``max`` unsettled ones, and one more for each that is acknowledged, given back or refused."""
    await make(http)
    there = [await publish(http, str(number)) for number in range(5)]
    async with stream(http, "max=2") as lines:
        first, second = await lines.next(), await lines.next()
        await lines.nothing()
        await settle(http, "acks", first)
        third = await lines.next()
        await settle(http, "naks", second)
        again = await lines.next()
        assert ids([first, second, third, again]) == [there[0], there[1], there[2], there[1]]
        assert again["delivery"]["attempt"] == 2
        path = f"{CONSUMER}/deliveries/{third['delivery']['token']}/term"
        async with http.post(path) as answer:
            assert answer.status == 204
        assert ids([await lines.next()]) == [there[3]]
        await lines.nothing()


async def test_what_is_not_settled_in_time_comes_again(http: aiohttp.ClientSession) -> None:
    """Though the stream carries as many as it may: its own delivery is nobody's any more."""
    await make(http, ack_wait=0.5)
    name = await publish(http, "one")
    async with stream(http, "max=1") as lines:
        got = [await lines.next(), await lines.next()]
        assert ids(got) == [name, name]
        assert [line["delivery"]["attempt"] for line in got] == [1, 2]


async def test_max_ack_pending_bounds_all_streams(http: aiohttp.ClientSession) -> None:
    """Two streams together have no more unsettled deliveries than the consumer allows."""
    await make(http, max_ack_pending=3)
    for number in range(6):
        await publish(http, str(number))
    async with stream(http) as one:
        got = [await one.next() for _ in range(3)]
        async with stream(http) as two:
            await two.nothing()
            assert (await info(http))["ack_pending"] == 3
            await settle(http, "acks", *got)
            await asyncio.sleep(SHORT)
            assert (await info(http))["ack_pending"] == 3


async def test_two_workers_share(http: aiohttp.ClientSession) -> None:
    """Each message goes to one of them, a pull among them."""
    await make(http)
    async with stream(http, "max=10") as one, stream(http, "max=10") as two:
        there = [await publish(http, str(number)) for number in range(30)]
        got = [*[await one.next() for _ in range(10)], *[await two.next() for _ in range(10)]]
        async with http.post(f"{CONSUMER}/deliveries", json={"max": 256, "wait": 5}) as answer:
            got += [{"delivery": each} for each in (await answer.json())["deliveries"]]
        assert sorted(ids(got)) == sorted(there)
        await settle(http, "acks", *got)


async def test_a_slow_reader_is_waited_for(tmp_path: Path) -> None:
    """Only so much is handed over as can be written; the rest goes to others. What waits keeps its time."""
    body = b"x" * 60_000
    async with running_broker(tmp_path) as url, aiohttp.ClientSession(url) as http:
        await make(http, ack_wait=0.6, max_ack_pending=10_000)
        host, port = url.removeprefix("http://").split(":")
        # As little as can be waits in this process.
        reader, writer = await asyncio.open_connection(host, int(port), limit=1000)
        head = f"GET {STREAM}?max=10000&inline=65536 HTTP/1.1\r\nHost: x\r\nAccept: {MEDIA_TYPE}\r\n\r\n"
        writer.write(head.encode())
        await reader.readuntil(b"\r\n\r\n")
        there = [await publish(http, body) for _ in range(400)]
        await asyncio.sleep(SHORT)
        pending = (await info(http))["ack_pending"]
        assert 0 < pending < len(there)  # 24 MB do not fit in what lies between
        async with http.post(f"{CONSUMER}/deliveries", json={"max": 10, "wait": 0}) as answer:
            others = [{"delivery": each} for each in (await answer.json())["deliveries"]]
            assert len(others) == 10
        await settle(http, "acks", *others)
        parser, got = RecordParser(), 0
        async with asyncio.timeout(60):
            while got < len(there) - len(others):
                chunk = await reader.readexactly(int(await reader.readline(), 16))
                await reader.readline()
                tokens = [cast("Any", head)["delivery"]["token"] for head, _ in parser.feed(chunk) if head]
                if tokens:
                    async with http.post(f"{CONSUMER}/acks", json={"tokens": tokens}) as answer:
                        assert answer.status == 200
                        late = len((await answer.json())["failed"])
                    got += len(tokens) - late
        writer.close()
        assert (await info(http))["ack_pending"] == 0


async def test_what_a_broken_stream_carried_comes_after_ack_wait(http: aiohttp.ClientSession) -> None:
    """It can still be settled meanwhile; what is not goes to another worker, as a second attempt."""
    await make(http, ack_wait=1)
    there = [await publish(http, "one"), await publish(http, "two")]
    async with stream(http) as lines:
        first, second = await lines.next(), await lines.next()
    async with stream(http) as lines:
        await settle(http, "acks", first)
        await lines.nothing()
        again = await lines.next()
        assert ids([again]) == ids([second]) == there[1:]
        assert again["delivery"]["attempt"] == 2


async def test_a_reader_that_left_takes_nothing_with_it(http: aiohttp.ClientSession) -> None:
    """What is published after a stream broke goes to another at once, as a first attempt."""
    await make(http, ack_wait=600)
    for _ in range(5):
        async with stream(http) as lines:
            lines.answer.close()
        name = await publish(http, "one")
        async with stream(http) as lines:
            got = await lines.next()
            assert (ids([got]), got["delivery"]["attempt"]) == ([name], 1)
            await settle(http, "acks", got)


async def test_a_stream_is_ended_behind_what_it_carries(http: aiohttp.ClientSession) -> None:
    """DELETE of the id that the answer named: the body ends whole. Unknown ones are 404."""
    await make(http)
    async with stream(http) as lines:
        name = await publish(http, "one")
        path = f"{STREAM}/{lines.answer.headers['Tensorbus-Stream']}"
        async with http.delete(path.replace("worker", "other")) as answer:
            assert answer.status == 404
        async with http.delete(path) as answer:
            assert answer.status == 204
        rest = [await lines.next()]
        if rest[0]:
            assert ids(rest) == [name]
            assert await lines.next() == {}
        async with http.delete(path) as answer:
            assert answer.status == 404


async def test_deleting_the_consumer_ends_its_streams(http: aiohttp.ClientSession) -> None:
    """The last line says why."""
    await make(http)
    async with stream(http) as lines:
        async with http.delete(CONSUMER) as answer:
            assert answer.status == 204
        last = await lines.next()
        assert last["problem"]["type"] == "urn:tensorbus:problem:not-found"
        assert await lines.next() == {}
    async with http.get(STREAM) as answer:
        assert answer.status == 404


async def test_a_stream_shows_that_it_lives(http: aiohttp.ClientSession) -> None:
    """A line a second, if that is asked for; and it ends when it was quiet for as long as was asked for."""
    await make(http)
    async with http.get(f"{STREAM}?heartbeat=1&wait=2") as answer:
        lines = [json.loads(line) async for line in answer.content]
    assert lines.count({"heartbeat": True}) == len(lines) >= 2


@pytest.mark.parametrize("query", ["max=0", "max=10001", "inline=-1", "follow=yes", "wait=x", "beat=1"])
async def test_a_malformed_wish_is_refused(http: aiohttp.ClientSession, query: str) -> None:
    """With 400, before anything is handed over."""
    await make(http)
    async with http.get(f"{STREAM}?{query}") as answer:
        assert answer.status == 400


async def test_a_stream_needs_the_right_to_read(tmp_path: Path) -> None:
    """404 to whoever may not read the consumer's topics; a token that is revoked ends the stream."""
    tokens = TokenFile(tmp_path)
    reader, credential = tokens.create(
        TokenPlan("reader", Rights(subscribe=("notes.>",), publish=("notes.>",)))
    )
    _, other = tokens.create(TokenPlan("other", Rights(subscribe=("else.>",))))
    async with (
        running_broker(tmp_path) as url,
        aiohttp.ClientSession(url, headers={"Authorization": f"Bearer {credential}"}) as http,
    ):
        await make(http)
        async with http.get(STREAM, headers={"Authorization": f"Bearer {other}"}) as answer:
            assert answer.status == 404
        async with aiohttp.request("GET", url + STREAM) as answer:
            assert answer.status == 401
        async with stream(http) as lines:
            name = await publish(http, "one")
            assert ids([await lines.next()]) == [name]
            tokens.revoke(reader.id)
            last = await lines.next()
            assert last["problem"]["status"] == 401
            assert await lines.next() == {}


async def test_a_stream_lasts_as_long_as_it_may(tmp_path: Path) -> None:
    """Then it ends as if nothing were amiss, and the client opens another."""
    settings = ServerSettings(max_stream=0.2)
    async with (
        running_broker(tmp_path, settings=settings) as url,
        Client(url) as bus,
        bus.subscribe("notes.>", "worker", prefetch=8) as deliveries,
    ):
        for number in range(4):
            await bus.publish("notes.a", str(number).encode())
            delivery = await deliveries.receive(timeout=PROMPT)
            assert delivery is not None and await delivery.load() == str(number).encode()
            await delivery.ack()
            await asyncio.sleep(SHORT)


async def test_a_stream_is_counted(http: aiohttp.ClientSession) -> None:
    """As long as it is open; what it carries, as deliveries."""
    await make(http)
    await publish(http, "one")
    async with stream(http) as lines:
        await lines.next()
        async with http.get("/metrics") as answer:
            text = await answer.text()
        assert "tensorbus_streaming_connections 1.0" in text
        assert "tensorbus_deliveries_total 1.0" in text


# --- restarts ----------------------------------------------------------------------------------------


@asynccontextmanager
async def process(data: Path, port: int = 0) -> AsyncGenerator[tuple[subprocess.Popen[str], str]]:
    """A broker process and its URL."""
    command = (sys.executable, "-m", "tensorbus", "serve", "--json", "--port", str(port), "--data", str(data))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        try:
            assert running.stdout is not None
            line = await asyncio.to_thread(running.stdout.readline)
            yield running, json.loads(line)["url"]
        finally:
            running.kill()


async def test_a_stream_ends_whole_when_the_broker_stops(tmp_path: Path) -> None:
    """SIGTERM: the body ends where a delivery ends, and the process with exit code 0."""
    async with process(tmp_path) as (broker, url), aiohttp.ClientSession(url) as http:
        await make(http)
        async with stream(http) as lines:
            name = await publish(http, "one")
            assert ids([await lines.next()]) == [name]
            broker.send_signal(signal.SIGTERM)
            assert await lines.next() == {}
        assert await asyncio.to_thread(broker.wait, 30) == 0


async def test_every_message_counts_once_over_restarts(tmp_path: Path) -> None:
    """Whatever is killed: an acknowledged message does not come again, and none is missing."""
    settings = ClientSettings(retry_for=60.0)
    count, done = 120, set[str]()
    again: list[str] = []
    port = 0
    published = asyncio.Event()
    for round_ in range(3):
        async with process(tmp_path, port) as (broker, url), Client(url, settings=settings) as bus:
            port = int(url.rpartition(":")[2])
            if not published.is_set():
                for number in range(count):
                    await bus.publish("notes.a", str(number).encode(), key=str(number))
                published.set()
            began = time.monotonic()
            async with bus.subscribe("notes.>", "worker", ack_wait=1, prefetch=16) as deliveries:
                while len(done) < (count if round_ == 2 else 40 * (round_ + 1)):
                    assert time.monotonic() < began + 60
                    delivery = await deliveries.receive(timeout=PROMPT)
                    assert delivery is not None
                    await delivery.ack()
                    if delivery.id in done:
                        again.append(delivery.id)
                    done.add(delivery.id)
                if round_ < 2:
                    broker.kill()
                    broker.wait()
                    await bus.aclose()
    assert len(done) == count
    assert again == []


async def test_a_subscription_survives_a_restart(tmp_path: Path) -> None:
    """Its stream is opened again, and goes on."""
    async with process(tmp_path) as (broker, url):
        port = int(url.rpartition(":")[2])
        async with Client(url) as bus, bus.subscribe("notes.>", "worker", prefetch=4) as deliveries:
            await bus.publish("notes.a", b"1")
            first = await deliveries.receive(timeout=PROMPT)
            assert first is not None
            await first.ack()
            broker.send_signal(signal.SIGTERM)
            await asyncio.to_thread(broker.wait, 30)
            async with process(tmp_path, port):
                await bus.publish("notes.a", b"2")
                second = await deliveries.receive(timeout=PROMPT)
                assert second is not None and await second.load() == b"2"
                await second.ack()


async def test_leaving_loses_no_time(tmp_path: Path) -> None:
    """What was on its way to a subscription that is left goes to the next one at once, as a first attempt."""
    async with running_broker(tmp_path) as url, Client(url) as bus:
        seen = 0
        publishing = asyncio.create_task(_publish_all(bus, 200))
        while seen < 200:
            async with bus.subscribe("notes.>", "worker", ack_wait=600, prefetch=8) as deliveries:
                for _ in range(min(10, 200 - seen)):
                    delivery = await deliveries.receive(timeout=PROMPT)
                    assert delivery is not None and delivery.attempt == 1
                    await delivery.ack()
                    seen += 1
        await publishing


async def _publish_all(bus: Client, count: int) -> None:
    for number in range(count):
        await bus.publish("notes.a", str(number).encode())
