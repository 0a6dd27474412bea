"""Peers that are slow, silent, or gone without a word: they cost next to nothing, and hold up nobody."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from tensorbus.streaming.raw import RawEncoder

KIB, MIB = 1 << 10, 1 << 20
CROWD = 100
"""Bad peers of a kind at a time."""
A_PEER = 128 * KIB
"""Memory that one may cost."""
SIZE = 8 * MIB
FRAMES = "application/vnd.tensorbus.frames"

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")


def body(size: int) -> bytes:
    """The frames of a message."""
    encoder = RawEncoder({}, "application/octet-stream", size)
    opening = encoder.open()
    content = random.Random(0).randbytes(size)
    slices = b"".join(head + bytes(payload) for head, payload in encoder.slices(content))
    return opening + slices + encoder.close()


BODY = body(SIZE)


@dataclass(frozen=True)
class Running:
    """A broker process, and a large message in it."""

    url: str
    process: Process
    message: str

    def resident(self) -> int:
        """Its memory now, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        [line] = [line for line in status.splitlines() if line.startswith("VmRSS")]
        return int(line.split()[1]) * KIB

    def connect(self) -> socket.socket:
        """A connection with small buffers, so that the kernels do not hide who is slow."""
        host, port = self.url.removeprefix("http://").split(":")
        peer = socket.socket()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * KIB)
        peer.connect((host, int(port)))
        return peer

    async def gauge(self, name: str) -> float:
        """A figure of /metrics."""
        async with aiohttp.request("GET", f"{self.url}/metrics") as answer:
            lines = (await answer.text()).splitlines()
        [line] = [line for line in lines if line.startswith(f"tensorbus_{name} ")]
        return float(line.split()[1])

    async def until(self, name: str, right: Callable[[float], bool]) -> None:
        """Wait for a figure."""
        async with asyncio.timeout(60):
            while not right(await self.gauge(name)):
                await asyncio.sleep(0.05)


@asynccontextmanager
async def running(data: Path, idle: float) -> AsyncGenerator[Running]:
    """`tensorbus serve`, warm; it has to stop with exit code 0."""
    options = ("--port", "0", "--data", str(data), "--json", "--idle-timeout", str(idle))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tensorbus", "serve", "--shutdown-timeout", "0", *options),
        stdout=PIPE,
        stderr=PIPE,
    )
    assert process.stdout is not None
    drain = asyncio.create_task(process.stderr.read()) if process.stderr else None
    try:
        url = json.loads(await process.stdout.readline())["url"]
        receipt = await publish(url)
        broker = Running(url, process, receipt["id"])
        # Threads and their buffers are made once, whatever comes.
        for _ in range(2):
            await others_work(broker)
        yield broker
    finally:
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        if drain is not None:
            await drain


async def publish(url: str) -> dict[str, str]:
    """The large message, once more."""
    headers = {"Content-Type": FRAMES}
    async with aiohttp.request("POST", f"{url}/v1/topics/a.b/messages", data=BODY, headers=headers) as answer:
        assert answer.status == 201, await answer.text()
        return await answer.json()


async def fetch(url: str, name: str) -> bytes:
    """A body."""
    async with aiohttp.request("GET", f"{url}/v1/messages/{name}/frames") as answer:
        assert answer.status == 200
        return await answer.read()


async def others_work(broker: Running) -> None:
    """Beside the bad peers, good ones publish and fetch; none of them needs as long as an idle time-out."""

    async def work() -> None:
        receipt = await publish(broker.url)
        assert await fetch(broker.url, receipt["id"]) == BODY
        async with aiohttp.request("DELETE", f"{broker.url}/v1/messages/{receipt['id']}") as answer:
            assert answer.status == 204

    async with asyncio.timeout(60):
        await asyncio.gather(*(work() for _ in range(6)))


def post_head() -> bytes:
    """The head of a request that publishes."""
    return (
        f"POST /v1/topics/a.b/messages HTTP/1.1\r\nHost: x\r\nContent-Type: {FRAMES}\r\n"
        f"Content-Length: {len(BODY)}\r\n\r\n"
    ).encode()


def is_over(peer: socket.socket) -> bool:
    """Whether the broker has ended a connection, with an answer or without; eats what it sent."""
    peer.settimeout(30)
    try:
        while peer.recv(MIB):
            pass
    except ConnectionError:
        pass
    return True


def close_all(peers: list[socket.socket]) -> None:
    """End connections."""
    for peer in peers:
        peer.close()


def assert_cheap(broker: Running, before: int, what: str) -> None:
    """The crowd has cost no more than it may."""
    each = (broker.resident() - before) / CROWD
    print(f"\n{what}: {each / KIB:.0f} KiB each")
    assert each <= A_PEER


async def test_readers_that_do_not_read(tmp_path: Path) -> None:
    """They hold no memory; after the idle time-out they are cut off, and their descriptors given back."""
    async with running(tmp_path, idle=3.0) as broker:
        before = broker.resident()
        peers = [broker.connect() for _ in range(CROWD)]
        for peer in peers:
            peer.sendall(f"GET /v1/messages/{broker.message}/frames HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await broker.until("open_downloads", lambda count: count >= CROWD)
        await others_work(broker)
        assert_cheap(broker, before, "a reader that does not read")
        await broker.until("open_downloads", lambda count: count == 0)
        close_all(peers)


async def test_readers_that_are_slow(tmp_path: Path) -> None:
    """They take a little at a time for longer than the idle time-out, and are never cut off."""
    async with running(tmp_path, idle=2.0) as broker:
        before = broker.resident()
        peers = [broker.connect() for _ in range(CROWD)]
        for peer in peers:
            peer.sendall(f"GET /v1/messages/{broker.message}/frames HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            peer.setblocking(False)
        loop = asyncio.get_running_loop()
        end = loop.time() + 5.0
        good = asyncio.create_task(others_work(broker))
        while loop.time() < end:
            for peer in peers:
                assert await loop.sock_recv(peer, 8 * KIB)
            await asyncio.sleep(0.05)
        await good
        assert_cheap(broker, before, "a reader that is slow")
        assert await broker.gauge("open_downloads") == CROWD
        close_all(peers)
        await broker.until("open_downloads", lambda count: count == 0)


async def test_writers_that_are_slow(tmp_path: Path) -> None:
    """A few bytes at a time, for longer than the idle time-out: they are not cut off, and finish."""
    async with running(tmp_path, idle=2.0) as broker:
        before = broker.resident()
        peers = [broker.connect() for _ in range(CROWD)]
        for peer in peers:
            peer.sendall(post_head() + BODY[:1000])
        await broker.until("open_uploads", lambda count: count >= CROWD)
        loop = asyncio.get_running_loop()
        end = loop.time() + 5.0
        good = asyncio.create_task(others_work(broker))
        at = 1000
        while loop.time() < end:
            for peer in peers:
                peer.sendall(BODY[at : at + 100])
            at += 100
            await asyncio.sleep(0.1)
        await good
        assert_cheap(broker, before, "a writer that is slow")
        for peer in peers[:3]:
            peer.sendall(BODY[at:])
            assert (await asyncio.to_thread(peer.recv, 100)).startswith(b"HTTP/1.1 201 ")
        close_all(peers)
        await broker.until("open_uploads", lambda count: count == 0)


async def test_writers_that_fall_silent(tmp_path: Path) -> None:
    """In the midst of a head, of a body, or after connecting: they are ended after a while."""
    async with running(tmp_path, idle=2.0) as broker:
        before = broker.resident()
        beginnings = (post_head() + BODY[: 2 * MIB], post_head(), post_head()[:40], b"")
        peers = [broker.connect() for _ in range(CROWD)]
        for number, peer in enumerate(peers):
            await asyncio.to_thread(peer.sendall, beginnings[number % len(beginnings)])
        await others_work(broker)
        assert_cheap(broker, before, "a writer that fell silent")
        await broker.until("open_uploads", lambda count: count == 0)
        # Head and connection have a patience of their own, 15 s.
        assert all(await asyncio.gather(*(asyncio.to_thread(is_over, peer) for peer in peers)))
        close_all(peers)


async def test_peers_that_are_gone_without_a_word(tmp_path: Path) -> None:
    """Half-open connections, whose peers will never answer again: nothing is held for them in the end."""
    async with running(tmp_path, idle=2.0) as broker:
        before = broker.resident()
        downloads = [broker.connect() for _ in range(CROWD // 2)]
        uploads = [broker.connect() for _ in range(CROWD // 2)]
        for peer in downloads:
            peer.sendall(f"GET /v1/messages/{broker.message}/frames HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        for peer in uploads:
            peer.sendall(post_head() + BODY[: 64 * KIB])
        await broker.until("open_uploads", lambda count: count >= len(uploads))
        # As a machine that lost its power: its end neither sends nor takes anything any more, nor says so.
        for peer in downloads + uploads:
            go_dead(peer)
        await others_work(broker)
        assert_cheap(broker, before, "a peer that is gone")
        for gauge in ("open_uploads", "open_downloads"):
            await broker.until(gauge, lambda count: count == 0)
        await broker.until("connections", lambda count: count <= 5)
        close_all(downloads + uploads)


TCP_REPAIR, TCP_REPAIR_ON = 19, 1


def go_dead(peer: socket.socket) -> None:
    """Close a socket without a FIN, where that is allowed (CAP_NET_ADMIN); elsewhere it just stays silent."""
    try:
        peer.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_ON)
    except OSError:
        return
    peer.close()
