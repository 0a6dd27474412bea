"""How bodies of every size and pace get from a connection into the broker, and what a bad one leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

from storing import frames_left
from tensorbus.bus.broker import BrokerSettings
from tensorbus.bus.server import ServerSettings
from tensorbus.bus.testing import running_broker
from tensorbus.streaming.raw import RawEncoder

FRAMES = {"Content-Type": "application/vnd.tensorbus.frames"}
POST = "/v1/topics/fl.test.updates/messages"
MIB = 1 << 20
LIMIT = 4 * MIB
UPLOADS = 32
LARGE = 3 * MIB
"""Large enough to be received past aiohttp; see bus/server/receiver.py."""


def message(size: int = 100_000, value: bytes = b"a") -> list[bytes]:
    """The frames of a message whose one item is ``size`` times ``value``."""
    encoder = RawEncoder({"site": "a"}, "text/plain", size)
    opening = encoder.open()
    slices = b"".join(b"".join((head, bytes(payload))) for head, payload in encoder.slices(value * size))
    return [opening, slices, encoder.close()]


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """The address of a broker of its own, with small limits."""
    limits = BrokerSettings(max_message_bytes=LIMIT, max_open_messages=UPLOADS)
    async with running_broker(tmp_path, limits, ServerSettings(idle_timeout=2.0)) as address:
        yield address


@pytest.fixture
async def http(url: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a broker of its own."""
    async with aiohttp.ClientSession(url) as session:
        yield session


async def listed(http: aiohttp.ClientSession, **query: str) -> list[dict[str, object]]:
    """Messages as listed."""
    async with http.get("/v1/messages", params=query) as answer:
        assert answer.status == 200
        return (await answer.json())["messages"]


def head_of(length: int) -> bytes:
    """The head of a request that publishes ``length`` bytes of frames."""
    fields = f"Host: x\r\nContent-Length: {length}\r\nContent-Type: {FRAMES['Content-Type']}\r\n"
    return f"POST {POST} HTTP/1.1\r\n{fields}\r\n".encode()


async def nothing_is_left(http: aiohttp.ClientSession, tmp_path: Path) -> None:
    """No message, open or sealed, and no byte of one in the store."""
    assert await listed(http) == []
    assert await listed(http, state="open") == []
    await frames_left.becomes(tmp_path, ())  # the frames go when no thread uses them any more


@pytest.mark.parametrize("length", [2**63 - 1, 2**63, 2**64 - 1])
async def test_an_absurd_length_takes_no_memory(url: str, length: int) -> None:
    """A Content-Length near 2⁶³ is answered with 413 at once."""
    answer = await exchange(url, head_of(length))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"application/problem+json" in answer


async def test_a_length_beyond_64_bits_is_a_bad_request(url: str) -> None:
    """A number that no machine word holds is refused by the HTTP parser."""
    answer = await exchange(
        url, f"POST {POST} HTTP/1.1\r\nHost: x\r\nContent-Length: {10**40}\r\n\r\n".encode()
    )
    assert answer.split()[1] == b"400"


SIZES = pytest.mark.parametrize("size", [100_000, LARGE])


@SIZES
async def test_a_large_or_small_body_arrives_whole(http: aiohttp.ClientSession, size: int) -> None:
    """However a body is received, what comes back is what was sent."""
    body = b"".join(message(size))
    async with http.post(POST, data=body, headers=FRAMES) as answer:
        assert answer.status == 201
        receipt = await answer.json()
    async with http.get(f"/v1/messages/{receipt['id']}/frames") as answer:
        assert await answer.read() == body


@SIZES
async def test_a_silent_publisher_is_given_up(
    url: str, http: aiohttp.ClientSession, tmp_path: Path, size: int
) -> None:
    """408 when not a byte comes for the idle time-out; what had arrived is dropped."""
    body = b"".join(message(size))
    answer = await exchange(url, head_of(len(body)) + body[: size // 2])
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"urn:tensorbus:problem:transfer-stalled" in answer
    await nothing_is_left(http, tmp_path)


async def test_a_large_body_that_ends_early_is_refused(
    url: str, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """A publisher that closes only its sending side within the body is told so: 422, truncated."""
    body = b"".join(message(LARGE))
    reader, writer = await connect(url)
    writer.write(head_of(len(body)) + body[:-1000])
    writer.write_eof()
    answer = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    assert answer.startswith(b"HTTP/1.1 422 ")
    await nothing_is_left(http, tmp_path)


async def test_many_large_uploads_share_the_threads(http: aiohttp.ClientSession) -> None:
    """More uploads at a time than there are threads to receive in all come through."""
    body = b"".join(message(LARGE))

    async def upload() -> str:
        async with http.post(POST, data=body, headers=FRAMES) as answer:
            assert answer.status == 201, await answer.text()
            return (await answer.json())["digest"]

    assert len(set(await asyncio.gather(*[upload() for _ in range(24)]))) == 1


async def test_a_slow_publisher_is_not_cut_off(http: aiohttp.ClientSession) -> None:
    """An upload that takes longer than the idle time-out succeeds as long as bytes keep coming."""
    body = b"".join(message(50))
    step = -(-len(body) // 6)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), step):
            await asyncio.sleep(0.5)  # the pace of the sender: 3 s in all, with a time-out of 2 s
            yield body[start : start + step]

    async with http.post(POST, data=pieces(), headers=FRAMES) as answer:
        assert answer.status == 201


@SIZES
async def test_a_publisher_that_leaves_half_way_leaves_nothing(
    url: str, http: aiohttp.ClientSession, tmp_path: Path, size: int
) -> None:
    """The upload is given up as soon as the connection closes, without waiting for the idle time-out."""
    body = b"".join(message(size))
    _, writer = await connect(url)
    writer.write(head_of(len(body)) + body[: size // 2])
    await writer.drain()
    while not await listed(http, state="open"):
        await asyncio.sleep(0)
    writer.close()
    async with asyncio.timeout(1.9):
        while await listed(http, state="open"):
            await asyncio.sleep(0)
    await nothing_is_left(http, tmp_path)


async def test_continue_is_said_after_the_checks(url: str) -> None:
    """With ``Expect: 100-continue`` the body is asked for only when topic, key and length are acceptable."""
    body = b"".join(message())
    common = (
        f"Host: x\r\nExpect: 100-continue\r\nContent-Type: {FRAMES['Content-Type']}\r\nIdempotency-Key: k\r\n"
    )
    good = f"POST {POST} HTTP/1.1\r\n{common}Content-Length: {len(body)}\r\n\r\n".encode()
    reader, writer = await connect(url)
    writer.write(good)
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 201 ")
    writer.close()
    # The same key again: the receipt comes without the body having been sent.
    assert (await exchange(url, good)).startswith(b"HTTP/1.1 200 ")
    huge = f"POST {POST} HTTP/1.1\r\n{common}Content-Length: {LIMIT + 1}\r\n\r\n".replace(": k", ": other")
    assert (await exchange(url, huge.encode())).startswith(b"HTTP/1.1 413 ")
    bad = good.replace(b"fl.test.updates", b"fl..updates")
    assert (await exchange(url, bad)).startswith(b"HTTP/1.1 400 ")
    strange = good.replace(b"100-continue", b"a-miracle").replace(b": k", b": third")
    assert (await exchange(url, strange)).startswith(b"HTTP/1.1 417 ")


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A bare connection to the same server."""
    address = urlsplit(url)
    return await asyncio.open_connection(address.hostname, address.port)


async def exchange(url: str, request: bytes) -> bytes:
    """Send bytes, and read the head of the answer and as much of its body as that says."""
    reader, writer = await connect(url)
    writer.write(request)
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.split(b"\r\n") if line.startswith(b"Content-Length: "))
        return head + await reader.readexactly(int(length.split()[1]))
    finally:
        writer.close()
