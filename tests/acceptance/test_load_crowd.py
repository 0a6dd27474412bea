"""A thousand publishers and a thousand subscribers on one broker, and a broker short of descriptors."""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tensorbus.streaming.raw import RawEncoder

KIB, MIB = 1 << 10, 1 << 20
PUBLISHERS = SUBSCRIBERS = 1000
SIZE = MIB
"""Of an update: the LoRA weights of a small model."""

IDLE_CONNECTION = 32 * KIB
RUNNING_UPLOAD = 128 * KIB
WHOLE_BROKER = 128 * MIB
PATIENCE = 240.0
"""Seconds for all of it on a slow machine that does something else beside."""

linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")


def body() -> bytes:
    """The frames of an update."""
    encoder = RawEncoder({"round": "1"}, "application/octet-stream", SIZE)
    opening = encoder.open()
    content = random.Random(0).randbytes(SIZE)
    slices = b"".join(head + bytes(payload) for head, payload in encoder.slices(content))
    return opening + slices + encoder.close()


@asynccontextmanager
async def broker_process(
    data: Path, *options: str, limit: int | None = None
) -> AsyncGenerator[tuple[str, Process]]:
    """`tensorbus serve` as users start it, with ``limit`` descriptors at the most; it has to stop with 0."""

    def restrict() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    command = ("-m", "tensorbus", "serve", "--port", "0", "--data", str(data), "--json", *options)
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=PIPE, stderr=PIPE, preexec_fn=restrict
    )
    assert process.stdout is not None
    try:
        yield json.loads(await process.stdout.readline())["url"], process
    finally:
        process.send_signal(signal.SIGTERM)
        await process.communicate()
        assert process.returncode == 0


def resident(process: Process, field: str = "VmRSS") -> int:
    """Memory of a process in bytes: now (VmRSS), or the most it ever was (VmHWM)."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith(field)]
    return int(line.split()[1]) * KIB


def request_head(method: str, path: str, length: int, media: str) -> bytes:
    """The head of a request with a body."""
    return (
        f"{method} {path} HTTP/1.1\r\nHost: broker\r\n"
        f"Content-Length: {length}\r\nContent-Type: {media}\r\n\r\n"
    ).encode()


Peer = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connect(url: str) -> Peer:
    """A connection that reads little ahead."""
    host, port = url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port), limit=4 * KIB)


async def answer_of(peer: Peer) -> tuple[int, bytes]:
    """Status and body of the next answer on a connection."""
    head = await peer[0].readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    return int(head.split(b" ")[1]), await peer[0].readexactly(length)


async def close_all(peers: list[Peer]) -> None:
    """End connections."""
    for _, writer in peers:
        writer.transport.abort()
    await asyncio.sleep(0)


def enough_descriptors(count: int) -> None:
    """This process needs them too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        assert not os.environ.get("CI"), f"CI has to allow {count} descriptors, and allows {hard}"
        pytest.skip(f"this user may have {hard} descriptors only")
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


@linux
async def test_a_thousand_publishers_beside_a_thousand_subscribers(tmp_path: Path) -> None:
    """1,000 updates of 1 MiB at once, while 1,000 subscribers wait: all are stored and delivered, nothing
    times out, and the broker's memory grows by no more than its goals for each connection.
    """
    enough_descriptors(4500)
    frames = body()
    async with asyncio.timeout(PATIENCE), broker_process(tmp_path) as (url, process):
        async with aiohttp.ClientSession(url) as http:
            async with http.put("/v1/consumers/quiet", json={"filter": "nothing.here"}) as answer:
                assert answer.status == 201
            async with http.put(
                "/v1/consumers/updates", json={"filter": "fl.>", "max_ack_pending": 2000}
            ) as answer:
                assert answer.status == 201
        # The first of everything takes memory that stays: it is not the price of a connection.
        for _ in range(3):
            await publish(url, frames, "warm.up")
        before = resident(process)

        subscribers = [await connect(url) for _ in range(SUBSCRIBERS)]
        pull = json.dumps({"max": 1, "wait": 60}).encode()
        for _, writer in subscribers:
            head = request_head("POST", "/v1/consumers/quiet/deliveries", len(pull), "application/json")
            writer.write(head + pull)
        await all_wait(url, SUBSCRIBERS)
        waiting = resident(process)

        publishers = [await connect(url) for _ in range(PUBLISHERS)]
        receipts = await asyncio.gather(
            *(send(peer, frames, number) for number, peer in enumerate(publishers))
        )
        peak = resident(process, "VmHWM")
        assert len({receipt["id"] for receipt in receipts}) == PUBLISHERS

        a_subscriber = (waiting - before) / SUBSCRIBERS
        a_publisher = max(0, peak - waiting) / PUBLISHERS
        print(
            f"\nidle broker {before / MIB:.0f} MiB; {a_subscriber / KIB:.1f} KiB a waiting subscriber; "
            f"{a_publisher / KIB:.1f} KiB a running upload; at most {peak / MIB:.0f} MiB in all"
        )
        assert a_subscriber <= IDLE_CONNECTION
        assert a_publisher <= RUNNING_UPLOAD
        assert peak <= WHOLE_BROKER + SUBSCRIBERS * IDLE_CONNECTION
        await close_all(publishers)

        async with aiohttp.ClientSession(url) as http:
            async with http.get("/v1/topics") as answer:
                topics = {topic["topic"]: topic for topic in (await answer.json())["topics"]}
            assert topics["fl.updates"]["messages"] == PUBLISHERS
            got: set[str] = set()
            while len(got) < PUBLISHERS:
                wanted = {"max": 100, "wait": 1}
                async with http.post("/v1/consumers/updates/deliveries", json=wanted) as answer:
                    got |= {delivery["message"]["id"] for delivery in (await answer.json())["deliveries"]}
            assert got == {receipt["id"] for receipt in receipts}
            # Those who wait are still waiting, and hear of what comes for them.
            for _ in range(5):
                await publish(url, frames, "nothing.here")
        heard = await heard_of(subscribers, 5)
        assert heard == 5
        await close_all(subscribers)


async def publish(url: str, frames: bytes, topic: str) -> None:
    """One message on a connection of its own."""
    peer = await connect(url)
    peer[1].write(request_head("POST", f"/v1/topics/{topic}/messages", len(frames), FRAMES) + frames)
    status, _ = await answer_of(peer)
    assert status == 201
    await close_all([peer])


FRAMES = "application/vnd.tensorbus.frames"


async def send(peer: Peer, frames: bytes, number: int) -> dict[str, str]:
    """An update under a key of its own, on a connection that is there."""
    head = request_head("POST", "/v1/topics/fl.updates/messages", len(frames), FRAMES)
    head = head[:-2] + f"Idempotency-Key: update-{number}\r\n\r\n".encode()
    writer = peer[1]
    writer.write(head)
    for start in range(0, len(frames), 64 * KIB):
        writer.write(frames[start : start + 64 * KIB])
        await writer.drain()
    status, answer = await answer_of(peer)
    assert status == 201, answer
    return json.loads(answer)


async def all_wait(url: str, count: int) -> None:
    """Until the broker says that so many connections are open."""
    async with aiohttp.ClientSession(url) as http:
        while True:
            async with http.get("/metrics") as answer:
                lines = (await answer.text()).splitlines()
            [line] = [line for line in lines if line.startswith("tensorbus_connections ")]
            if float(line.split()[1]) >= count:
                return
            await asyncio.sleep(0.05)


async def heard_of(subscribers: list[Peer], count: int) -> int:
    """How many of the subscribers got a delivery, once ``count`` did."""
    answers = [asyncio.create_task(answer_of(peer)) for peer in subscribers]
    heard = 0
    async with asyncio.timeout(30):
        for done in asyncio.as_completed(answers):
            status, document = await done
            assert status == 200
            heard += len(json.loads(document)["deliveries"])
            if heard >= count:
                break
    for task in answers:
        task.cancel()
    await asyncio.gather(*answers, return_exceptions=True)
    return heard


@linux
async def test_a_broker_short_of_descriptors_says_so(tmp_path: Path) -> None:
    """Where the system grants few, connections beyond them are refused with 503 at once; those that are open
    work, and when some are closed, others are served.
    """
    async with asyncio.timeout(60), broker_process(tmp_path, limit=256) as (url, _):
        frames = body()
        peers = [await connect(url) for _ in range(300)]
        for _, writer in peers:
            writer.write(b"GET /readyz HTTP/1.1\r\nHost: broker\r\n\r\n")
        answers = await asyncio.gather(*(answer_of(peer) for peer in peers))
        statuses = [status for status, _ in answers]
        assert set(statuses) == {200, 503}
        assert statuses.count(200) >= 32
        assert b"as many connections" in answers[statuses.index(503)][1]
        served = [peer for peer, status in zip(peers, statuses, strict=True) if status == 200]
        receipts = await asyncio.gather(*(send(peer, frames, number) for number, peer in enumerate(served)))
        assert len(receipts) == len(served)
        await close_all(peers)
        while True:
            peer = await connect(url)
            peer[1].write(b"GET /readyz HTTP/1.1\r\nHost: broker\r\n\r\n")
            status, _ = await answer_of(peer)
            await close_all([peer])
            if status == 200:
                break
