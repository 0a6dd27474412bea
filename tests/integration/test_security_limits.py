"""What a connection may cost: slow heads, silence, long heads, many connections."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

from tensorbus.bus.access import Quotas, Rights, TokenFile, TokenPlan
from tensorbus.bus.server import ServerSettings
from tensorbus.bus.testing import running_broker

HASTY = ServerSettings(head_timeout=0.3, keepalive_timeout=0.4)
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


class Peer:
    """A connection that says exactly what a test wants."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def rest(self) -> bytes:
        """What the broker says until it closes; the test's own time limit is the only one."""
        async with asyncio.timeout(20):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    async def answer(self) -> tuple[int, bytes]:
        """Status and body of the next answer."""
        async with asyncio.timeout(20):
            head = await self.reader.readuntil(b"\r\n\r\n")
            lines = head.decode().split("\r\n")
            fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            body = await self.reader.readexactly(int(fields.get("content-length", 0)))
            return int(lines[0].split()[1]), body


@asynccontextmanager
async def peer(url: str) -> AsyncGenerator[Peer]:
    """A new connection."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    try:
        yield Peer(reader, writer)
    finally:
        writer.close()


def problem(answer: bytes) -> tuple[int, str]:
    """Status and word of the problem document that an answer is."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    document = json.loads(body)
    assert document["status"] == int(head.split()[1])
    return document["status"], document["type"].rpartition(":")[2]


# --- time --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "begun", [b"G", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ", b"\r\n\r\n", HEALTH[:-1]]
)
async def test_a_head_that_never_ends_is_cut(tmp_path: Path, begun: bytes) -> None:
    """Whoever begins a request and does not finish its head is answered 408, and the connection closed."""
    async with running_broker(tmp_path, settings=HASTY) as url, peer(url) as slow:
        slow.writer.write(begun)
        assert problem(await slow.rest()) == (408, "transfer-stalled")


async def test_a_head_that_drips_is_cut(tmp_path: Path) -> None:
    """The time is for the whole head: a byte now and then does not buy more of it."""
    async with running_broker(tmp_path, settings=HASTY) as url, peer(url) as slow:

        async def drip() -> None:
            slow.writer.write(HEALTH[:-4])
            while True:
                slow.writer.write(b"\r\nX: y")
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        try:
            assert b" 408 " in await slow.rest()
        finally:
            dripping.cancel()


async def test_a_silent_connection_is_closed(tmp_path: Path) -> None:
    """A connection without a request, and one that rests after one, are closed without a word."""
    async with running_broker(tmp_path, settings=HASTY) as url:
        async with peer(url) as silent:
            assert await silent.rest() == b""
        async with peer(url) as resting:
            resting.writer.write(HEALTH)
            assert (await resting.answer())[0] == 200
            assert await resting.rest() == b""


async def test_a_request_that_waits_is_not_idle(tmp_path: Path) -> None:
    """A long poll lasts as long as it was asked for, whatever the patience with heads and resting peers."""
    async with (
        running_broker(tmp_path, settings=HASTY) as url,
        aiohttp.ClientSession(url) as http,
        http.put("/v1/consumers/c", json={"filter": ">"}) as made,
    ):
        assert made.status == 201
        async with http.post("/v1/consumers/c/deliveries", json={"wait": 1.5}) as answer:
            assert await answer.json() == {"deliveries": []}


async def test_a_slow_body_is_not_a_slow_head(tmp_path: Path) -> None:
    """A body may take as long as it moves."""
    async with running_broker(tmp_path, settings=HASTY) as url, peer(url) as slow:
        slow.writer.write(b"POST /v1/topics/a/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\n")
        for _ in range(8):
            await asyncio.sleep(0.1)
            slow.writer.write(b"x")
        assert (await slow.answer())[0] == 201


# --- bytes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 9000 + b"\r\n\r\n", 431),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"X-Many: 1\r\n" * 200 + b"\r\n", 431),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + (b"X: " + b"y" * 8000 + b"\r\n") * 10 + b"\r\n", 431),
        (b"x" * 5_000, 400),
    ],
)
async def test_heads_have_limits(tmp_path: Path, head: bytes, status: int) -> None:
    """A line of a head, their number and the whole head: over the limit is a problem, and the end."""
    async with running_broker(tmp_path) as url, peer(url) as large:
        large.writer.write(head)
        assert problem(await large.rest())[0] == status


async def test_bodies_and_pipelined_requests_are_no_heads(tmp_path: Path) -> None:
    """What follows a head counts for nothing: a body of megabytes, and further requests, pass."""
    size = 3 << 20
    async with running_broker(tmp_path) as url, peer(url) as busy:
        head = b"POST /v1/topics/a/messages HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size
        for _ in range(2):
            busy.writer.write(head + bytes(size))
            assert (await busy.answer())[0] == 201
    async with running_broker(tmp_path) as url, peer(url) as busy:
        busy.writer.write(HEALTH * 5000)
        for _ in range(5000):
            assert (await busy.answer())[0] == 200


# --- numbers -----------------------------------------------------------------------------------------


async def test_connections_have_a_limit(tmp_path: Path) -> None:
    """One too many is told to come later; when another leaves, there is room again."""
    two_at_most = ServerSettings(max_connections=2)
    async with running_broker(tmp_path, settings=two_at_most) as url, peer(url) as one:
        async with peer(url) as two:
            for known in (one, two):
                known.writer.write(HEALTH)
                assert (await known.answer())[0] == 200
            async with peer(url) as third:
                answer = await third.rest()
                assert problem(answer) == (503, "broker-busy")
                assert b"Retry-After: " in answer
            one.writer.write(HEALTH)
            assert (await one.answer())[0] == 200
        async with asyncio.timeout(20):
            while True:
                async with peer(url) as next_one:
                    next_one.writer.write(HEALTH)
                    if (await next_one.answer())[0] == 200:
                        break


async def test_connections_of_one_token_have_a_limit(tmp_path: Path) -> None:
    """It counts connections, not requests, and concerns nobody else."""
    tokens = TokenFile(tmp_path)
    few = str(tokens.create(TokenPlan("few", Rights(subscribe=(">",)), quotas=Quotas(max_connections=2)))[1])
    many = str(tokens.create(TokenPlan("many", Rights(subscribe=(">",))))[1])

    def ask(token: str) -> bytes:
        return b"GET /v1/topics HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n" % token.encode()

    async with running_broker(tmp_path) as url, peer(url) as one, peer(url) as two:
        for known in (one, two, one, two):
            known.writer.write(ask(few))
            assert (await known.answer())[0] == 200
        async with peer(url) as third:
            third.writer.write(ask(few))
            assert problem(await third.rest()) == (429, "too-many-requests")
        async with peer(url) as other:
            other.writer.write(ask(many))
            assert (await other.answer())[0] == 200
        # A connection is its latest token's.
        two.writer.write(ask(many))
        assert (await two.answer())[0] == 200
        async with peer(url) as third:
            third.writer.write(ask(few))
            assert (await third.answer())[0] == 200


async def test_who_is_refused_does_not_stay(tmp_path: Path) -> None:
    """A connection without a valid token is closed with its answer, and cannot be held."""
    TokenFile(tmp_path).create(TokenPlan("somebody"))
    async with running_broker(tmp_path) as url, peer(url) as stranger:
        stranger.writer.write(b"GET /v1/topics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert problem(await stranger.rest()) == (401, "unauthorized")
