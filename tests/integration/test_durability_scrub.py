"""The scrub: reads everything, finds what is damaged, and holds up nobody."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tensorbus.bus.broker import Broker, BrokerSettings
from tensorbus.bus.broker.uploads import Upload
from tensorbus.bus.client import Client
from tensorbus.bus.messages import Receipt
from tensorbus.bus.server import ServerSettings
from tensorbus.bus.stores.file import FileStore
from tensorbus.bus.testing import running_broker
from tensorbus.errors import Conflict, StorageError
from tensorbus.streaming.raw import RawEncoder

MIB = 1 << 20
ON_DISK = BrokerSettings(inline_bytes=0)


def body(size: int) -> bytes:
    """The frames of a message."""
    encoder = RawEncoder({}, "application/octet-stream", size)
    opening = encoder.open()
    content = random.Random(size).randbytes(size)
    slices = b"".join(head + bytes(payload) for head, payload in encoder.slices(content))
    return opening + slices + encoder.close()


async def publish(broker: Broker, size: int) -> Receipt:
    """Publish a message."""
    upload = await broker.begin("a.b", size=size)
    assert isinstance(upload, Upload)
    async with upload:
        await upload.write(body(size))
        return await upload.seal()


def flip(path: Path, offset: int) -> None:
    """One bit."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 16]))


async def fill(data: Path) -> list[Receipt]:
    """Three messages in files, one in a row."""
    async with Broker(FileStore(data)) as broker:
        return [await publish(broker, size) for size in (100_000, 2 * MIB, 300_000, 5_000)]


async def test_what_is_whole_is_said_to_be(tmp_path: Path) -> None:
    """All messages and bytes are counted; nothing is found."""
    sent = await fill(tmp_path)
    async with Broker(FileStore(tmp_path)) as broker:
        assert broker.scrubbed.state == "never"
        broker.scrub()
        report = await broker.scrub_end()
    assert report.clean
    assert (report.messages, report.bytes) == (4, sum(receipt.bytes for receipt in sent))
    assert (report.of_messages, report.of_bytes) == (report.messages, report.bytes)
    assert report.orphans == report.rows == report.damaged == report.restored == ()


async def test_everything_that_is_wrong_is_found(tmp_path: Path) -> None:
    """A flipped bit, a missing file, a damaged row; a file of no message; rows that contradict each other."""
    flipped, missing, whole, small = await fill(tmp_path)
    flip(tmp_path / "frames" / f"{flipped.id}.frames", 50_000)
    with sqlite3.connect(tmp_path / "meta.db") as rows:
        rows.execute("UPDATE bodies SET data = zeroblob(length(data)) WHERE seq = ?", (small.seq,))
        rows.execute(
            "INSERT INTO deliveries (consumer, message, seq, attempt, due, settled) "
            "VALUES ('c', 'm', 1, 1, 0, 0)"
        )
    rows.close()
    async with Broker(FileStore(tmp_path)) as broker:
        (tmp_path / "frames" / f"{missing.id}.frames").unlink()
        (tmp_path / "frames" / f"{'0' * 32}.frames").write_bytes(b"whose is it?")
        broker.scrub()
        report = await broker.scrub_end()
        assert not report.clean
        assert [name for name, _ in report.damaged] == [flipped.id, missing.id, small.id]
        assert report.orphans == (f"frames/{'0' * 32}.frames",)
        assert "deliveries of messages that are not there" in " ".join(report.rows)
        assert [m.id for m in (await broker.messages()).messages] == [whole.id]
        # Another one finds nothing new, and says that it is not well all the same.
        broker.scrub()
        report = await broker.scrub_end()
        assert (report.damaged, report.still_damaged, report.clean) == ((), 3, False)


async def test_one_at_a_time_and_it_can_be_stopped(tmp_path: Path) -> None:
    """A second one is refused; a stopped one says so."""
    await fill(tmp_path)
    async with Broker(FileStore(tmp_path)) as broker:
        broker.scrub(rate=1000)
        with pytest.raises(Conflict, match="under way"):
            broker.scrub()
        report = await broker.stop_scrub()
        assert report.state == "stopped" and not report.clean
        broker.scrub()
        assert (await broker.scrub_end()).clean


async def test_a_paced_scrub_leaves_room_for_others(tmp_path: Path) -> None:
    """It takes as long as its rate says, and messages are published and read meanwhile."""
    await fill(tmp_path)
    async with Broker(FileStore(tmp_path)) as broker:
        started = asyncio.get_running_loop().time()
        broker.scrub(rate=4 * MIB)
        served = 0
        while broker.scrubbed.state == "running":
            sent = await publish(broker, 1000)
            async with await broker.open_reader(sent.id) as reader:
                served += sum([len(chunk) async for chunk in reader])
            await broker.delete(sent.id)
        assert asyncio.get_running_loop().time() - started >= 0.5
        assert served > 0 and broker.scrubbed.clean


# --- HTTP and the command line -----------------------------------------------------------------------


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """A broker with messages; the first one is damaged."""
    sent = await fill(tmp_path / "data")
    flip(tmp_path / "data" / "frames" / f"{sent[0].id}.frames", 50_000)
    async with running_broker(tmp_path / "data", ON_DISK, ServerSettings()) as address:
        yield address


async def test_over_http(url: str) -> None:
    """Begun with POST, looked at with GET; plans that make no sense are refused."""
    async with aiohttp.ClientSession(url) as http:
        async with http.get("/v1/scrub") as answer:
            assert (await answer.json())["state"] == "never"
        for plan in ({"rate": 0}, {"rate": "fast"}, {"speed": 1}):
            async with http.post("/v1/scrub", json=plan) as answer:
                assert answer.status == 400
        async with http.post("/v1/scrub", json={"rate": 1000}) as answer:
            assert answer.status == 202
            assert (await answer.json())["rate"] == 1000
        async with http.post("/v1/scrub") as answer:
            assert answer.status == 409
        async with http.delete("/v1/scrub") as answer:
            assert (await answer.json())["state"] == "stopped"


async def test_over_the_client(url: str) -> None:
    """The report and the listing of damaged messages as values."""
    async with Client(url) as bus:
        await bus.scrub(1 << 40)
        async with asyncio.timeout(30):
            while (report := await bus.scrub_report()).state == "running":
                await asyncio.sleep(0.01)
        [(name, reason)] = report.damaged
        [damage] = (await bus.damaged()).damaged
        assert (damage.id, damage.reason) == (name, reason)


def scrub(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`tensorbus scrub`."""
    command = [sys.executable, "-m", "tensorbus", "scrub", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"}
    )


async def test_the_command_on_a_directory(tmp_path: Path) -> None:
    """Exit code 0 when all is whole, 1 with the damage named; a leftover of a crash is reported."""
    sent = await fill(tmp_path)
    (tmp_path / "frames" / f"{'0' * 32}.frames").write_bytes(b"half a message")
    done = await asyncio.to_thread(scrub, "--data", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "everything is whole" in done.stdout and f"frames/{'0' * 32}.frames" in done.stdout
    flip(tmp_path / "frames" / f"{sent[1].id}.frames", MIB)
    done = await asyncio.to_thread(scrub, "--data", str(tmp_path), "--json")
    assert done.returncode == 1
    assert [entry["id"] for entry in json.loads(done.stdout)["damaged"]] == [sent[1].id]
    async with Broker(FileStore(tmp_path)):
        done = await asyncio.to_thread(scrub, "--data", str(tmp_path))
        assert done.returncode == 1 and "in use by another broker" in done.stderr


async def test_the_command_on_a_broker(url: str) -> None:
    """It waits for the end, and says the same as on a directory."""
    done = await asyncio.to_thread(scrub, "--url", url, "--rate", "1000")
    assert done.returncode == 1, done.stderr
    assert "damaged" in done.stdout and "CRC-32C" in done.stdout


# --- a damaged database ------------------------------------------------------------------------------


async def test_a_damaged_database_is_refused_in_words(tmp_path: Path) -> None:
    """The broker does not start on it, and says what to do; what a scrub finds in it is named."""
    await fill(tmp_path)
    meta = tmp_path / "meta.db"
    whole = meta.read_bytes()
    meta.write_bytes(b"\0" * 4096 + whole[4096:])
    with pytest.raises(StorageError, match=r"Restore .*backup|recover"):
        await Broker(FileStore(tmp_path)).start()
    done = await asyncio.to_thread(scrub, "--data", str(tmp_path))
    assert done.returncode == 1 and "backup" in done.stderr
    # Damage that does not keep it from starting: an index that does not fit its table.
    meta.write_bytes(whole)
    with sqlite3.connect(meta) as rows:
        rows.execute("PRAGMA writable_schema = ON")
        rows.execute(
            "UPDATE sqlite_schema SET sql = replace(sql, '(sealed)', '(created)') "
            "WHERE name = 'messages_by_time'"
        )
    rows.close()
    done = await asyncio.to_thread(scrub, "--data", str(tmp_path), "--json")
    assert done.returncode == 1
    assert any("messages_by_time" in problem for problem in json.loads(done.stdout)["rows"])
