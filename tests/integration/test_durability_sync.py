"""What reaches the disk when, and what a disk that fails does to a broker."""

from __future__ import annotations

import asyncio
import errno
import json
import random
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from crashing.disks import SYNCS, WRITES, FailingDisk
from tensorbus.bus.broker import Broker, BrokerSettings
from tensorbus.bus.broker.uploads import Upload
from tensorbus.bus.consumers import ConsumerConfig
from tensorbus.bus.messages import Receipt
from tensorbus.bus.stores.file import FileStore
from tensorbus.streaming.raw import RawEncoder

MIB = 1 << 20
POST = "/v1/topics/a.b/messages"
FRAMES = {"Content-Type": "application/vnd.tensorbus.frames"}


def body(size: int) -> bytes:
    """The frames of a message."""
    encoder = RawEncoder({}, "application/octet-stream", size)
    opening = encoder.open()
    content = random.Random(size).randbytes(size)
    slices = b"".join(head + bytes(payload) for head, payload in encoder.slices(content))
    return opening + slices + encoder.close()


async def publish(broker: Broker, frames: bytes) -> Receipt:
    """Publish frames."""
    upload = await broker.begin("a.b", size=len(frames))
    assert isinstance(upload, Upload)
    async with upload:
        await upload.write(frames)
        return await upload.seal()


def syncs(broker: Broker) -> dict[str, int]:
    """How often what was synced since the broker started."""
    return {kind: sum(times.snapshot()[0]) for kind, times in broker.measures.fsync.items()}


# --- group commit ------------------------------------------------------------------------------------


async def test_many_small_messages_share_their_syncs(tmp_path: Path) -> None:
    """400 publishes at once of messages that fit a row: no file is synced, and few commits suffice."""
    async with Broker(FileStore(tmp_path)) as broker:
        before = syncs(broker)
        receipts = await asyncio.gather(*(publish(broker, body(1000)) for _ in range(400)))
        after = syncs(broker)
        assert len({receipt.seq for receipt in receipts}) == 400
        assert after["file"] == before["file"] and after["folder"] == before["folder"]
        assert 1 <= after["rows"] - before["rows"] <= 100


async def test_large_messages_share_commits_and_names(tmp_path: Path) -> None:
    """Each file is synced itself; the folder and the rows are synced for many at once."""
    settings = BrokerSettings(inline_bytes=0)
    async with Broker(FileStore(tmp_path), settings) as broker:
        before = syncs(broker)
        await asyncio.gather(*(publish(broker, body(1000)) for _ in range(100)))
        after = syncs(broker)
        assert after["file"] - before["file"] == 100
        assert 1 <= after["folder"] - before["folder"] <= after["rows"] - before["rows"] <= 60


async def test_acknowledgements_share_their_syncs(tmp_path: Path) -> None:
    """So do acks of deliveries."""
    async with Broker(FileStore(tmp_path)) as broker:
        await broker.ensure_consumer("c", ConsumerConfig("a.b", max_ack_pending=200))
        await asyncio.gather(*(publish(broker, body(100)) for _ in range(200)))
        deliveries = await broker.pull("c", 200)
        before = syncs(broker)
        await asyncio.gather(*(broker.ack("c", delivery.token) for delivery in deliveries))
        assert syncs(broker)["rows"] - before["rows"] <= 50


# --- relaxed -----------------------------------------------------------------------------------------


async def test_never_waits_for_no_disk(tmp_path: Path) -> None:
    """Nothing is synced on behalf of a message."""
    settings = BrokerSettings(sync="never", inline_bytes=2000)
    async with Broker(FileStore(tmp_path), settings) as broker:
        for size in (1000, 100_000):
            await publish(broker, body(size))
        assert syncs(broker) == {"file": 0, "folder": 0, "rows": 0}


async def test_an_interval_syncs_everything_soon(tmp_path: Path) -> None:
    """What was acknowledged is on the disk after the interval: files, names and rows; an idle broker too."""
    settings = BrokerSettings(sync=0.05, inline_bytes=2000)
    async with Broker(FileStore(tmp_path), settings) as broker:
        await asyncio.gather(*(publish(broker, body(100_000)) for _ in range(3)))
        async with asyncio.timeout(10):
            while (done := syncs(broker))["file"] != 3 or not done["folder"] or not done["rows"]:
                await asyncio.sleep(0.01)


async def test_a_stop_leaves_nothing_unsynced(tmp_path: Path) -> None:
    """An interval that has not passed yet ends with the broker."""
    settings = BrokerSettings(sync=3600.0, inline_bytes=2000)
    async with Broker(FileStore(tmp_path), settings) as broker:
        await publish(broker, body(100_000))
        assert syncs(broker)["file"] == 0
    assert syncs(broker)["file"] == 1 and syncs(broker)["rows"] == 1


# --- processes ---------------------------------------------------------------------------------------


@asynccontextmanager
async def serving(
    data: Path, *options: str, environment: dict[str, str] | None = None
) -> AsyncGenerator[tuple[aiohttp.ClientSession, Process]]:
    """`tensorbus serve` and a client of it; killed in the end."""
    command = ("-m", "tensorbus", "serve", "--port", "0", "--data", str(data), "--json", *options)
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=PIPE, env=environment)
    assert process.stdout is not None
    try:
        url = json.loads(await process.stdout.readline())["url"]
        async with aiohttp.ClientSession(url) as http:
            yield http, process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def post(http: aiohttp.ClientSession, frames: bytes) -> tuple[int, dict[str, str]]:
    """Publish over HTTP: status and document."""
    async with http.post(POST, data=frames, headers=FRAMES) as answer:
        return answer.status, await answer.json(content_type=None)


async def get(http: aiohttp.ClientSession, name: str) -> bytes:
    """A body."""
    async with http.get(f"/v1/messages/{name}/frames") as answer:
        assert answer.status == 200, await answer.text()
        return await answer.read()


@pytest.mark.parametrize("sync", ["always", "30", "never"])
async def test_a_killed_broker_loses_nothing_whatever_the_mode(tmp_path: Path, sync: str) -> None:
    """What the system has is not lost with the process: rows, files, deliveries and their ends."""
    sent: dict[str, bytes] = {}
    async with serving(tmp_path, "--sync", sync) as (http, process):
        async with http.put("/v1/consumers/c", json={"filter": ">"}) as answer:
            assert answer.status == 201
        for size in (100, 5_000, 100_000, 3 * MIB):
            status, receipt = await post(http, body(size))
            assert status == 201
            sent[receipt["id"]] = body(size)
        async with http.post("/v1/consumers/c/deliveries", json={"max": 1}) as answer:
            [delivery] = (await answer.json())["deliveries"]
        async with http.post(f"/v1/consumers/c/deliveries/{delivery['token']}/ack") as answer:
            assert answer.status == 204
        process.send_signal(signal.SIGKILL)
        await process.wait()
    async with serving(tmp_path) as (http, _):
        for name, frames in sent.items():
            assert await get(http, name) == frames
        async with http.get("/v1/consumers/c") as answer:
            assert (await answer.json())["backlog"] == 3


@pytest.mark.parametrize("sync", ["0", "-1", "sometimes", "1e9"])
async def test_a_mode_that_is_none_is_refused(tmp_path: Path, sync: str) -> None:
    """With the usual exit code for wrong usage, and words that name what there is."""
    command = ("-m", "tensorbus", "serve", "--data", str(tmp_path), "--sync", sync)
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stderr=PIPE)
    _, said = await process.communicate()
    assert process.returncode == 2
    assert "always" in said.decode() and "never" in said.decode()


# --- a disk that fails -------------------------------------------------------------------------------


async def test_an_upload_whose_sync_failed_is_gone(tmp_path: Path) -> None:
    """EIO from the sync of its file: it is refused for good, its file goes, and the next one is taken."""
    disk = FailingDisk(tmp_path, tmp_path / "data")
    async with serving(tmp_path / "data", environment=disk.environment) as (http, _):
        status, kept = await post(http, body(MIB))
        assert status == 201
        disk.fail(SYNCS, only=".frames")
        status, problem = await post(http, body(2 * MIB))
        assert status == 500 and "begin it anew" in problem["detail"]
        disk.work()
        status, other = await post(http, body(2 * MIB))
        assert status == 201
        async with asyncio.timeout(10):
            while len(list((tmp_path / "data" / "frames").iterdir())) != 2:
                await asyncio.sleep(0.01)
        assert await get(http, kept["id"]) == body(MIB)
        assert await get(http, other["id"]) == body(2 * MIB)


async def test_a_commit_whose_sync_failed_ends_all_writing(tmp_path: Path) -> None:
    """EIO from the sync of the rows: nothing is written any more, even if the disk says that it works again;
    what was stored is still delivered; the broker is not ready; after a restart it is as it should be.
    """
    disk = FailingDisk(tmp_path, tmp_path / "data")
    async with serving(tmp_path / "data", environment=disk.environment) as (http, process):
        status, kept = await post(http, body(100_000))
        assert status == 201
        disk.fail(SYNCS, only="meta.db-wal")
        status, _ = await post(http, body(200_000))
        assert status >= 500
        disk.work()
        for size in (100, 200_000):
            status, problem = await post(http, body(size))
            assert status == 503 and problem["type"].endswith("store-read-only")
        async with http.get("/readyz") as answer:
            assert answer.status == 503
        assert await get(http, kept["id"]) == body(100_000)
        process.kill()
        await process.wait()
    async with serving(tmp_path / "data") as (http, _):
        async with http.get("/v1/messages") as answer:
            listed = [message["id"] for message in (await answer.json())["messages"]]
        # The second one was not acknowledged; if it is there all the same, it is whole.
        assert listed[0] == kept["id"] and len(listed) <= 2
        for name, size in zip(listed, (100_000, 200_000), strict=False):
            assert await get(http, name) == body(size)
        async with http.get("/v1/damaged") as answer:
            assert (await answer.json())["damaged"] == []
        assert (await post(http, body(100)))[0] == 201


@pytest.mark.parametrize("only", [".frames", "meta.db", ""])
async def test_writes_that_fail_are_refused_and_then_taken_again(tmp_path: Path, only: str) -> None:
    """Full (507) or failing (500): nothing acknowledged is touched, and the broker goes on when it works."""
    disk = FailingDisk(tmp_path, tmp_path / "data")
    async with serving(tmp_path / "data", environment=disk.environment) as (http, _):
        status, kept = await post(http, body(100_000))
        for error, refusal in ((errno.ENOSPC, 507), (errno.EIO, 500)):
            disk.fail(WRITES, error=error, only=only)
            status, problem = await post(http, body(200_000))
            assert status == refusal, problem
            assert str(tmp_path / "data") in problem["detail"] or "space" in problem["detail"]
            disk.work()
            status, receipt = await post(http, body(200_000))
            assert status == 201
            assert await get(http, receipt["id"]) == body(200_000)
        assert await get(http, kept["id"]) == body(100_000)
