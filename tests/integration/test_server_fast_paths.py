"""Bodies that threads move past the HTTP library, clear or encrypted: whole, in order, and given up well."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
import trustme

from storing import frames_left
from tensorbus.bus.server import ServerSettings
from tensorbus.bus.server.movers import THREADS
from tensorbus.bus.server.tls import TlsFiles
from tensorbus.bus.testing import running_broker
from tensorbus.streaming.raw import RawEncoder

FRAMES = "application/vnd.tensorbus.frames"
POST = "/v1/topics/fl.test.updates/messages"
MIB = 1 << 20


def message(size: int) -> bytes:
    """The body of a message with one item of ``size`` bytes."""
    encoder = RawEncoder({}, "text/plain", size)
    opening = encoder.open()
    values = bytes(range(251)) * (size // 251 + 1)
    slices = b"".join(head + bytes(payload) for head, payload in encoder.slices(values[:size]))
    return opening + slices + encoder.close()


BODY = message(5 * MIB)


AUTHORITY = trustme.CA()
TRUST = ssl.create_default_context(cadata=AUTHORITY.cert_pem.bytes().decode())


@pytest.fixture(params=["http", "https"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """The address of a broker of its own."""
    tls = None
    if request.param == "https":
        tls = TlsFiles(tmp_path / "own.pem")
        AUTHORITY.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tls.cert))
    settings = ServerSettings(idle_timeout=5.0, tls=tls)
    async with running_broker(tmp_path / "data", settings=settings) as address:
        yield address


def session(url: str) -> aiohttp.ClientSession:
    """A client that knows the broker's certificate."""
    return aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(ssl=TRUST))


async def connect(url: str, room: int | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A bare connection; ``room`` makes both of its buffers in the kernel about so small."""
    address = urlsplit(url)
    connection = socket.socket()
    if room is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, (address.hostname, address.port))
    if address.scheme == "http":
        return await asyncio.open_connection(sock=connection, limit=1 << 16)
    return await asyncio.open_connection(
        sock=connection, limit=1 << 16, ssl=TRUST, server_hostname=address.hostname
    )


def posting(length: int) -> bytes:
    """The head of a request that publishes."""
    fields = f"Host: x\r\nContent-Length: {length}\r\nContent-Type: {FRAMES}\r\n"
    return f"POST {POST} HTTP/1.1\r\n{fields}\r\n".encode()


async def published(url: str) -> str:
    """The id of a message that is stored."""
    async with (
        session(url) as http,
        http.post(POST, data=BODY, headers={"Content-Type": FRAMES}) as answer,
    ):
        return (await answer.json())["id"]


async def fetched(url: str, message_id: str) -> bytes:
    """A message's body."""
    async with session(url) as http, http.get(f"/v1/messages/{message_id}/frames") as answer:
        return await answer.read()


async def read_chunks(reader: asyncio.StreamReader) -> bytes:
    """A chunked body, every chunk as long as it says."""
    body = bytearray()
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += await reader.readexactly(size)
        assert await reader.readexactly(2) == b"\r\n"
    assert await reader.readexactly(2) == b"\r\n"
    return bytes(body)


@pytest.mark.parametrize("together", [0, 1, 100_000])
async def test_what_comes_along_with_the_head_is_part_of_the_body(url: str, together: int) -> None:
    """However the bytes are cut, none is lost between the HTTP library and the thread that takes over."""
    reader, writer = await connect(url)
    writer.write(posting(len(BODY)) + BODY[:together])
    await writer.drain()
    writer.write(BODY[together:])
    answer = await reader.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 201 ")
    message_id = answer.split(b"/v1/messages/")[1][:32].decode()
    writer.close()
    assert await fetched(url, message_id) == BODY


async def test_tiny_socket_buffers_only_slow_things_down(url: str) -> None:
    """Up and down through sockets that hold a few kilobytes at a time."""
    reader, writer = await connect(url, 4096)
    writer.write(posting(len(BODY)) + BODY)
    answer = await reader.readuntil(b"\r\n\r\n")
    message_id = answer.split(b"/v1/messages/")[1][:32].decode()
    writer.close()
    reader, writer = await connect(url, 4096)
    writer.write(f"GET /v1/messages/{message_id}/frames HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    assert await reader.readexactly(len(BODY)) == BODY
    writer.close()


async def test_requests_behind_a_download_are_answered_in_order(url: str) -> None:
    """A connection that a thread has sent on goes on, also with requests that were there before."""
    message_id = await published(url)
    reader, writer = await connect(url)
    request = f"GET /v1/messages/{message_id}/frames HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    writer.write(3 * request + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    for _ in range(3):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        assert await reader.readexactly(len(BODY)) == BODY
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    writer.close()


async def test_a_request_behind_a_large_upload_is_refused_by_closing(url: str) -> None:
    """The answer says that the connection closes: what came behind the body is not taken for a request."""
    reader, writer = await connect(url)
    writer.write(posting(len(BODY)) + BODY + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 201 ")
    assert b"connection: close" in head.lower()
    rest = await reader.read()
    assert b"HTTP/1.1" not in rest
    writer.close()


async def test_a_followed_message_comes_in_whole_chunks(url: str) -> None:
    """Chunks are as long as they say, and what they hold is the message, however its pieces come."""
    up, sender = await connect(url)
    sender.write(posting(len(BODY)) + BODY[: MIB + 1000])
    await sender.drain()
    async with session(url) as http:
        found: list[dict[str, str]] = []
        while not found:
            async with http.get("/v1/messages", params={"state": "open"}) as answer:
                found = (await answer.json())["messages"]
    down, follower = await connect(url)
    follower.write(f"GET /v1/messages/{found[0]['id']}/frames HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert b"chunked" in (await down.readuntil(b"\r\n\r\n")).lower()
    following = asyncio.create_task(read_chunks(down))
    for start in range(MIB + 1000, len(BODY), 333_333):
        sender.write(BODY[start : start + 333_333])
        await sender.drain()
    assert (await up.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 201 ")
    assert await following == BODY
    sender.close()
    follower.close()


async def test_silent_peers_hold_no_thread(url: str) -> None:
    """Twice as many publishers pause within their bodies as there are threads; the next one is served."""
    waiting = [await connect(url) for _ in range(2 * THREADS)]
    for _, writer in waiting:
        writer.write(posting(len(BODY)) + BODY[: 2 * MIB])
    for _, writer in waiting:
        await writer.drain()
    assert await fetched(url, await published(url)) == BODY
    for reader, writer in waiting:
        writer.write(BODY[2 * MIB :])
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 201 ")
        writer.close()


async def test_a_message_deleted_under_its_upload_is_gone(url: str, tmp_path: Path) -> None:
    """The file is not taken from under the thread that writes to it; the publisher is told."""
    reader, writer = await connect(url)
    writer.write(posting(len(BODY)) + BODY[: 3 * MIB])
    await writer.drain()
    async with session(url) as http:
        found: list[dict[str, str]] = []
        while not found:
            async with http.get("/v1/messages", params={"state": "open"}) as answer:
                found = (await answer.json())["messages"]
        async with http.delete(f"/v1/messages/{found[0]['id']}") as answer:
            assert answer.status == 204
    writer.write(BODY[3 * MIB :])
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 4")
    writer.close()
    await frames_left.becomes(tmp_path / "data", ())
