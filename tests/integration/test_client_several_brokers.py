"""A client that knows several addresses goes on at the next one when a broker is away, whatever it does."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from storing import free_ports
from tensorbus import Client
from tensorbus.bus.client import ClientSettings
from tensorbus.bus.client.sync import SyncClient
from tensorbus.bus.testing import running_broker
from tensorbus.errors import PROBLEM_PREFIX, BrokerUnavailable, TensorbusError, TooManyRequests

BRIEFLY = ClientSettings(retry_for=0.5)


def away() -> str:
    """An address at which nobody listens."""
    return f"http://127.0.0.1:{free_ports(1)[0]}"


@asynccontextmanager
async def answering(answer: bytes, heard: list[bytes] | None = None) -> AsyncGenerator[str]:
    """A server that says ``answer`` to the head of each request, and closes; ``heard`` gets the heads."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            if heard is not None:
                heard.append(head)
            writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def said(status: str, *fields: str, body: str = "") -> bytes:
    """An answer."""
    return "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *fields, "", body]).encode()


@pytest.mark.parametrize("broken", ["refused", "reset", "502 Bad Gateway", "503 Service Unavailable"])
async def test_every_kind_of_call_goes_on_at_the_next(tmp_path: Path, broken: str) -> None:
    """Small, middling and large messages, deliveries one by one and as they come, downloads, lists."""
    small, middling, large = ({"w": np.arange(count, dtype=np.float32)} for count in (10, 1 << 18, 1 << 22))
    answer = said(broken) if broken[0] == "5" else b""
    async with running_broker(tmp_path) as url, answering(answer) as first:
        bad = away() if broken == "refused" else first

        @asynccontextmanager
        async def client() -> AsyncGenerator[Client]:
            async with Client([bad, url]) as bus:
                assert bus.url == bad
                yield bus
                assert bus.url == url

        async with client() as bus:
            receipts = await asyncio.gather(*(bus.publish("few", small, key=f"k{n}") for n in range(20)))
            assert len({receipt.id for receipt in receipts}) == 20
        for container in (middling, large):
            async with client() as bus:
                receipt = await bus.publish("more", container)
            async with client() as bus:
                found = await (await bus.fetch(receipt.id)).load()
                assert np.array_equal(found["w"], container["w"])  # type: ignore[index]
        for prefetch in (1, 8):
            async with client() as bus:
                async with bus.subscribe("few", consumer=f"c{prefetch}", prefetch=prefetch) as deliveries:
                    for _ in receipts:
                        delivery = await deliveries.receive(timeout=10)
                        assert delivery is not None
                        await delivery.ack()
                assert (await bus.consumer(f"c{prefetch}")).backlog == 0
        async with client() as bus:
            assert [topic.topic for topic in await bus.topics()] == ["few", "more"]


async def test_a_broker_that_stands_still_is_left(tmp_path: Path) -> None:
    """It takes connections and requests, and answers nothing: for the idle time-out, and no longer."""
    settings = ClientSettings(idle_timeout=0.3, retry_for=20)
    silent = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    still = f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}"
    async with silent, running_broker(tmp_path) as url:
        for size in (10, 1 << 20, 12 << 20):
            async with Client([still, url], settings=settings) as bus:
                receipt = await bus.publish("kept", bytes(size))
                assert bus.url == url
        async with Client([still, url], settings=settings) as bus:
            assert await (await bus.fetch(receipt.id)).load() == bytes(size)
        async with (
            Client([still, url], settings=settings) as bus,
            bus.subscribe("kept", prefetch=4) as deliveries,
        ):
            delivery = await deliveries.receive(timeout=20)
            assert delivery is not None
            await delivery.ack()


async def test_what_is_asked_once_goes_to_one_broker(tmp_path: Path) -> None:
    """Where there was no connection, the next is asked; where the request may have arrived, none is."""
    async with running_broker(tmp_path) as url:
        async with Client([away(), url], settings=BRIEFLY) as bus:
            first = (await bus.scrub()).started
            while (await bus.scrub_report()).state != "done":
                await asyncio.sleep(0.01)
        async with answering(b"") as cut, Client([cut, url], settings=BRIEFLY) as bus:
            with pytest.raises(BrokerUnavailable):
                await bus.scrub()
            assert bus.url == url
            assert (await bus.scrub_report()).started == first


async def test_an_error_says_what_was_tried() -> None:
    """Each address, and what was wrong there."""
    one = away()
    async with (
        answering(said("503 Service Unavailable")) as two,
        Client(f"{one},{two}", settings=BRIEFLY) as bus,
    ):
        with pytest.raises(BrokerUnavailable) as caught:
            await bus.topics()
        text = str(caught.value)
        assert f"{one} (Connection refused)" in text
        assert f"{two} (GET /v1/topics: 503 Service Unavailable)" in text
        with pytest.raises(BrokerUnavailable, match="no broker answers, tried"):
            await bus.publish("a", b"x")


async def test_who_asks_too_often_is_not_sent_elsewhere(tmp_path: Path) -> None:
    """A limit is no reason to ask another broker."""
    problem = json.dumps({"type": f"{PROBLEM_PREFIX}{TooManyRequests.slug}", "detail": "slowly"})
    limited = said("429 Too Many Requests", body=problem)
    async with (
        running_broker(tmp_path) as url,
        answering(limited) as first,
        Client([first, url], settings=BRIEFLY) as bus,
    ):
        with pytest.raises(TooManyRequests, match="slowly"):
            await bus.topics()
        assert bus.url == first


@pytest.mark.parametrize("status", ["301 Moved Permanently", "307 Temporary Redirect"])
async def test_a_token_goes_to_no_other_host(tmp_path: Path, status: str) -> None:
    """A broker, or who sits in its place, cannot send a client and its token anywhere."""
    heard: list[bytes] = []
    async with answering(said("200 OK"), heard) as elsewhere:
        there = said(status, f"Location: {elsewhere}/v1/topics")
        async with (
            answering(there) as one,
            answering(there) as two,
            Client([one, two], "tb_secret", settings=BRIEFLY) as bus,
        ):
            with pytest.raises(TensorbusError, match=status):
                await bus.topics()
            with pytest.raises(TensorbusError, match=status):
                await bus.publish("a", b"x")
    assert heard == []


def test_a_plain_program_and_the_command_line_take_lists(tmp_path: Path) -> None:
    """SyncClient, ``--url`` and TENSORBUS_URL."""
    both: list[str] = []

    async def serve() -> None:
        async with running_broker(tmp_path) as url:
            both.extend([away(), url])
            await asyncio.to_thread(use)

    def use() -> None:
        with SyncClient(both) as bus:
            bus.publish("a", b"x")
        command = [sys.executable, "-m", "tensorbus", "topics", "--json"]
        environment = {"TENSORBUS_URL": ", ".join(both)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert '"a"' in done.stdout
        bad = [*command, "--url", f"{both[0]},,"]
        wrong = subprocess.run(bad, capture_output=True, text=True, check=False)
        assert wrong.returncode
        assert "address 2 of 3" in wrong.stderr

    asyncio.run(serve())
