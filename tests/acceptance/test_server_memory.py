"""Law 1 at the broker: a message of any size passes through a constant amount of memory."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from zlib import crc32

import aiohttp
import pytest

from tensorbus.streaming.raw import RawEncoder

MIB = 1 << 20
SIZE = 1024 * MIB
LIMIT = 128 * MIB
FRAMES = {"Content-Type": "application/vnd.tensorbus.frames"}


@asynccontextmanager
async def broker_process(data: Path) -> AsyncGenerator[tuple[str, Process]]:
    """`tensorbus serve` as users start it; it has to stop with exit code 0."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tensorbus", "serve", "--port", "0", "--data", str(data), "--json"),
        stdout=PIPE,
    )
    assert process.stdout is not None
    try:
        yield json.loads(await process.stdout.readline())["url"], process
    finally:
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


class Publisher:
    """Makes the frames of one large message as they are sent."""

    def __init__(self) -> None:
        self.crc = 0
        self.sent = 0
        self.half_way = asyncio.Event()

    async def frames(self) -> AsyncIterator[bytes | memoryview]:
        """Frames of 1 MiB; each piece enters the checksum that readers have to arrive at."""
        encoder = RawEncoder({}, "application/octet-stream", SIZE)
        yield self._counted(encoder.open())
        block = bytes(range(256)) * 4096
        for _ in range(SIZE // MIB):
            for head, payload in encoder.slices(block):
                yield self._counted(head)
                yield self._counted(payload)
            if self.sent > SIZE // 2:
                self.half_way.set()
        yield self._counted(encoder.close())

    def _counted(self, piece: bytes | memoryview) -> bytes | memoryview:
        self.crc = crc32(piece, self.crc)
        self.sent += len(piece)
        return piece


async def read_all(answer: aiohttp.ClientResponse, crc: int = 0) -> int:
    """Checksum of what is left of the body."""
    async for chunk in answer.content.iter_any():
        crc = crc32(chunk, crc)
    return crc


def peak(process: Process) -> int:
    """Largest resident size of the process so far, in bytes (VmHWM)."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="VmHWM is Linux's")
async def test_a_gibibyte_passes_through_128_mebibytes(tmp_path: Path) -> None:
    """Publish 1 GiB, follow it slowly, then download it: the whole broker process stays within 128 MiB."""
    timeout = aiohttp.ClientTimeout(total=None)
    publisher = Publisher()
    async with (
        broker_process(tmp_path) as (url, process),
        aiohttp.ClientSession(url, timeout=timeout) as http,
    ):

        async def publish() -> str:
            path = "/v1/topics/large/messages"
            async with http.post(path, data=publisher.frames(), headers=FRAMES) as answer:
                assert answer.status == 201, await answer.text()
                return (await answer.json())["id"]

        publishing = asyncio.create_task(publish())
        await publisher.half_way.wait()
        async with http.get("/v1/messages?state=open") as answer:
            [found] = (await answer.json())["messages"]
        address = f"/v1/messages/{found['id']}/frames"
        async with http.get(address) as follower:
            # It takes a little, then nothing until all has been published: the broker must not wait for it,
            # nor keep for it what it does not take.
            first = await follower.content.readexactly(5 * MIB)
            await publishing
            followed = await read_all(follower, crc32(first))
        async with http.get(address) as download:
            assert download.content_length == publisher.sent
            downloaded = await read_all(download)
        assert followed == downloaded == publisher.crc
        assert peak(process) <= LIMIT


def small_message() -> tuple[bytes, bytes]:
    """A message of 2 MB, in two halves."""
    encoder = RawEncoder({}, "application/octet-stream", 2_000_000)
    opening = encoder.open()
    slices = [part for slice_ in encoder.slices(bytes(2_000_000)) for part in slice_]
    body = opening + b"".join(slices) + encoder.close()
    return body[: len(body) // 2], body[len(body) // 2 :]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="VmHWM is Linux's")
async def test_memory_does_not_grow_with_the_number_of_clients(tmp_path: Path) -> None:
    """150 publishers half-way at the same time, then as many readers that never read: 128 MiB in all."""
    first, second = small_message()
    async with broker_process(tmp_path) as (url, process):
        host, port = url.removeprefix("http://").split(":")
        head = f"HTTP/1.1\r\nHost: x\r\nContent-Length: {len(first + second)}\r\n"
        head += f"Content-Type: {FRAMES['Content-Type']}\r\n\r\n"
        publishers = [await asyncio.open_connection(host, int(port)) for _ in range(150)]
        for _, writer in publishers:
            writer.write(f"POST /v1/topics/small/messages {head}".encode() + first)
            await writer.drain()
        for _, writer in publishers:
            writer.write(second)
        for reader, writer in publishers:
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 201 ")
            writer.close()
        async with aiohttp.request("GET", f"{url}/v1/messages?limit=1") as answer:
            [found] = (await answer.json())["messages"]
        readers = [await asyncio.open_connection(host, int(port), limit=1000) for _ in range(150)]
        for reader, writer in readers:
            writer.write(f"GET /v1/messages/{found['id']}/frames HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        assert peak(process) <= LIMIT
        for _, writer in readers:
            writer.close()
