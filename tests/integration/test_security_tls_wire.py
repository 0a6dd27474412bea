"""TLS as bytes on a connection: what is no TLS, what is cut or forged, who leaves, and who is too slow."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
import trustme

from tensorbus.bus.server import ServerSettings
from tensorbus.bus.server.tls import TlsFiles
from tensorbus.bus.testing import running_broker
from tensorbus.streaming.raw import RawEncoder

FRAMES = "application/vnd.tensorbus.frames"
MIB = 1 << 20
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
AUTHORITY = trustme.CA()
TRUST = ssl.create_default_context(cadata=AUTHORITY.cert_pem.bytes().decode())


def message(size: int) -> bytes:
    """The body of a message with one item of ``size`` bytes."""
    encoder = RawEncoder({}, "text/plain", size)
    opening = encoder.open()
    values = bytes(range(251)) * (size // 251 + 1)
    slices = b"".join(head + bytes(payload) for head, payload in encoder.slices(values[:size]))
    return opening + slices + encoder.close()


BODY = message(6 * MIB)
KNOWN = f"Content-Length: {len(BODY)}\r\n"
CHUNKED = "Transfer-Encoding: chunked\r\n"


@asynccontextmanager
async def encrypted(
    folder: Path, settings: ServerSettings | None = None, *, mutual: bool = False
) -> AsyncGenerator[str]:
    """A broker that speaks TLS; ``mutual`` makes it ask for certificates of the same authority."""
    cert, ca = folder / "own.pem", folder / "ca.pem"
    AUTHORITY.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(cert))
    AUTHORITY.cert_pem.write_to_path(str(ca))
    chosen = settings or ServerSettings(idle_timeout=5.0)
    tls = TlsFiles(cert, client_ca=ca if mutual else None)
    where = ServerSettings(
        tls=tls,
        idle_timeout=chosen.idle_timeout,
        head_timeout=chosen.head_timeout,
        max_connections=chosen.max_connections,
    )
    async with running_broker(folder / "data", settings=where) as url:
        yield url


async def connect(
    url: str, context: ssl.SSLContext | None = TRUST
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A bare connection."""
    where = urlsplit(url)
    return await asyncio.open_connection(where.hostname, where.port, ssl=context, limit=1 << 16)


def session(url: str, context: ssl.SSLContext = TRUST) -> aiohttp.ClientSession:
    """A client that knows the broker's certificate."""
    return aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(ssl=context))


async def rest(reader: asyncio.StreamReader) -> bytes:
    """What comes until the connection ends, however it ends."""
    received = b""
    async with asyncio.timeout(20):
        try:
            while piece := await reader.read(MIB):
                received += piece
        except OSError:
            pass
    return received


def posting(fields: str) -> bytes:
    """The head of a request that publishes."""
    head = f"POST /v1/topics/a/messages HTTP/1.1\r\nHost: x\r\nContent-Type: {FRAMES}\r\n{fields}\r\n"
    return head.encode()


async def published(http: aiohttp.ClientSession) -> str:
    """The id of a message that is stored."""
    async with http.post("/v1/topics/a/messages", data=BODY, headers={"Content-Type": FRAMES}) as answer:
        return (await answer.json())["id"]


async def listed(http: aiohttp.ClientSession, state: str) -> list[dict[str, str]]:
    """The messages in a ``state``."""
    async with http.get("/v1/messages", params={"state": state}) as answer:
        return (await answer.json())["messages"]


async def gauge(http: aiohttp.ClientSession, name: str) -> float:
    """A figure of /metrics."""
    async with http.get("/metrics") as answer:
        for line in (await answer.text()).splitlines():
            if line.startswith(f"tensorbus_{name} "):
                return float(line.split()[1])
    raise AssertionError(f"no {name} in /metrics")


# --- what is no TLS ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [HEALTH, bytes(range(256)) * 300, b"\x16\x03\x01\xff\xff" + bytes(70_000), b"\x16\x03\x01\x00\x05", b""],
    ids=["plain HTTP", "noise", "a record that is too long", "a record that is cut", "nothing"],
)
async def test_what_is_no_tls_gets_nowhere(tmp_path: Path, said: bytes) -> None:
    """It is answered by nothing but an alert, the connection ends, and others are served."""
    async with encrypted(tmp_path) as url:
        reader, writer = await connect(url, None)
        writer.write(said)
        writer.write_eof()
        assert b"HTTP" not in await rest(reader)
        writer.close()
        async with session(url) as http, http.get("/healthz") as answer:
            assert answer.status == 200


async def test_a_handshake_that_drips_is_cut(tmp_path: Path) -> None:
    """The time is for the whole handshake: a byte now and then does not buy more of it."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    hello = TRUST.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with pytest.raises(ssl.SSLWantReadError):
        hello.do_handshake()
    greeting = outgoing.read()
    async with encrypted(tmp_path, ServerSettings(head_timeout=0.4)) as url:
        reader, writer = await connect(url, None)

        async def drip() -> None:
            for place in range(len(greeting) - 1):
                writer.write(greeting[place : place + 1])
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        try:
            assert await rest(reader) == b""
        finally:
            dripping.cancel()
        writer.close()


# --- bodies that end too early -------------------------------------------------------------------------


async def forge(endpoint: socket.socket, record: bytes) -> None:
    """Write past whoever encrypts this connection, as soon as the kernel takes it."""
    while True:
        try:
            os.write(endpoint.fileno(), record)
        except BlockingIOError:
            await asyncio.sleep(0.01)
        else:
            return


@pytest.mark.parametrize("fields", [KNOWN, CHUNKED], ids=["length", "chunks"])
@pytest.mark.parametrize("end", ["cut", "goodbye", "reset", "forged"])
async def test_a_body_that_ends_early_is_no_message(tmp_path: Path, fields: str, end: str) -> None:
    """A connection that somebody else cuts (no close_notify), or writes into, cannot end a body.

    All frames are there in the chunked case: what is missing is the word that this is all.
    """
    async with encrypted(tmp_path) as url, session(url) as http:
        reader, writer = await connect(url)
        if fields == KNOWN:
            writer.write(posting(KNOWN) + BODY[: 4 * MIB])
        else:
            writer.write(posting(CHUNKED) + b"%x\r\n" % len(BODY) + BODY + b"\r\n")
        await writer.drain()
        while not await listed(http, "open"):
            pass
        endpoint = writer.get_extra_info("socket")
        match end:
            case "cut":
                endpoint.shutdown(socket.SHUT_WR)
            case "goodbye":
                writer.close()
            case "reset":
                writer.transport.abort()
            case _:
                await forge(endpoint, b"\x17\x03\x03\x00\x20" + os.urandom(32))
        assert b" 201 " not in await rest(reader)
        async with asyncio.timeout(20):
            while await listed(http, "open") or await gauge(http, "open_uploads"):
                pass
        assert await listed(http, "sealed") == []
        writer.close()


# --- the end of a connection ---------------------------------------------------------------------------


def ask(url: str, request: bytes) -> bytes:
    """The answer; raises ssl.SSLEOFError if the connection ends without a close_notify."""
    where = urlsplit(url)
    with (
        socket.create_connection((where.hostname, where.port or 0)) as plain,
        TRUST.wrap_socket(plain, server_hostname="127.0.0.1", suppress_ragged_eofs=False) as secure,
    ):
        secure.sendall(request)
        received = b""
        while piece := secure.recv(MIB):
            received += piece
        return received


async def test_answers_end_with_a_goodbye(tmp_path: Path) -> None:
    """After small answers, and after bodies that a thread has moved, both ways."""
    async with encrypted(tmp_path) as url, session(url) as http:
        assert b" 200 " in await asyncio.to_thread(ask, url, HEALTH)
        assert b" 201 " in await asyncio.to_thread(ask, url, posting(KNOWN + "Connection: close\r\n") + BODY)
        where = f"/v1/messages/{await published(http)}/frames"
        request = f"GET {where} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        assert (await asyncio.to_thread(ask, url, request)).endswith(BODY)


async def test_who_is_turned_away_hears_why(tmp_path: Path) -> None:
    """Too many connections, and a head that never ends: the answer arrives, encrypted, and complete."""
    async with encrypted(tmp_path, ServerSettings(max_connections=1, head_timeout=0.4)) as url:
        slow_reader, slow = await connect(url)
        slow.write(HEALTH[:-1])
        assert b"HTTP/1.1 503 " in await asyncio.to_thread(ask, url, HEALTH)
        assert b"HTTP/1.1 408 " in await rest(slow_reader)
        slow.close()


async def test_a_follower_that_leaves_is_noticed(tmp_path: Path) -> None:
    """While nothing comes that could be sent to it, the connection is listened to."""
    async with encrypted(tmp_path, ServerSettings(idle_timeout=60)) as url, session(url) as http:
        up, sender = await connect(url)
        sender.write(posting(KNOWN) + BODY[: 3 * MIB])
        while not (found := await listed(http, "open")):
            pass
        down, follower = await connect(url)
        follower.write(f"GET /v1/messages/{found[0]['id']}/frames HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await down.readexactly(2 * MIB)
        assert await gauge(http, "open_downloads") == 1
        follower.close()
        async with asyncio.timeout(20):
            while await gauge(http, "open_downloads"):
                pass
        sender.write(BODY[3 * MIB :])
        assert b" 201 " in await up.readuntil(b"\r\n\r\n")
        sender.close()


async def test_a_reader_that_takes_nothing_is_cut(tmp_path: Path) -> None:
    """After the idle time-out, and it can tell that this was not all."""
    size = 40 * MIB
    async with encrypted(tmp_path, ServerSettings(idle_timeout=0.5)) as url, session(url) as http:
        kind = {"Content-Type": FRAMES}
        async with http.post("/v1/topics/a/messages", data=message(size), headers=kind) as answer:
            where = f"/v1/messages/{(await answer.json())['id']}/frames"
        reader, writer = await connect(url)
        writer.write(f"GET {where} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        async with asyncio.timeout(20):
            while await gauge(http, "open_downloads"):
                await asyncio.sleep(0.05)
        assert len(await rest(reader)) < size
        writer.close()


# --- both know each other ------------------------------------------------------------------------------


async def test_bodies_are_moved_with_certificates_at_both_ends(tmp_path: Path) -> None:
    """As without; on one connection the next requests follow a download."""
    context = ssl.create_default_context(cadata=AUTHORITY.cert_pem.bytes().decode())
    own = tmp_path / "site-a.pem"
    AUTHORITY.issue_cert("site-a.example.org").private_key_and_cert_chain_pem.write_to_path(str(own))
    context.load_cert_chain(own)
    async with encrypted(tmp_path, mutual=True) as url, session(url, context) as http:
        where = f"/v1/messages/{await published(http)}/frames"
        for _ in range(3):
            async with http.get(where) as answer:
                assert await answer.read() == BODY
        with pytest.raises((aiohttp.ClientError, OSError)):
            async with session(url) as stranger, stranger.get("/healthz"):
                pass
