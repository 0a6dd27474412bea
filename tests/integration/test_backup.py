"""`tensorbus backup`: a copy that is taken while the broker works, and a broker that starts from it."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import sqlite3
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tensorbus.bus.access import TokenFile, TokenPlan
from tensorbus.bus.client import Client
from tensorbus.bus.stores.backup import back_up
from tensorbus.bus.testing import running_broker
from tensorbus.errors import InvalidRequest, StoreVersion

LARGE = 300_000
"""Bytes of a message that is kept in a file."""


async def backup(data: Path, target: Path, code: int = 0) -> dict[str, Any]:
    """The command, in a process of its own as beside a running broker; its report."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tensorbus", "backup", "--data", str(data), str(target), "--json"),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == code
    return json.loads(out)


def content(number: int) -> bytes:
    """Of message ``number``: each third one is large."""
    return random.Random(number).randbytes(LARGE if number % 3 == 0 else 100)


async def bodies(bus: Client) -> dict[str, object]:
    """What is stored, by key, as it is downloaded and verified."""
    return {str(info.key): await (await bus.fetch(info.id)).load() async for info in bus.messages()}


async def test_what_was_acknowledged_before_a_backup_is_in_it(tmp_path: Path) -> None:
    """Publishing and deleting go on meanwhile; nothing in the copy is damaged, and nothing comes twice."""
    data, copy = tmp_path / "data", tmp_path / "copies" / "first"
    deleted: set[str] = set()

    async with running_broker(data) as url, Client(url) as bus:
        for number in range(30):
            await bus.publish("a.b", content(number), key=f"k{number}")
        async with bus.subscribe("a.>", consumer="reader") as deliveries:
            for _ in range(10):
                delivery = await deliveries.receive()
                assert delivery is not None
                await delivery.ack()

        async def work() -> None:
            number = 30
            while True:
                receipt = await bus.publish("a.b", content(number), key=f"k{number}")
                if number % 2:
                    deleted.add(f"k{number}")
                    await bus.delete(receipt.id)
                number += 1

        working = asyncio.create_task(work())
        report = await backup(data, copy)
        working.cancel()
        with suppress(asyncio.CancelledError):
            await working
        assert deleted, "nothing happened meanwhile"
        assert report["missing"] == []

    async with running_broker(copy) as url, Client(url) as bus:
        stored = await bodies(bus)
        assert {f"k{number}" for number in range(30)} <= stored.keys()
        assert len(stored) == report["messages"]
        for key, body in stored.items():
            assert body == content(int(key[1:])), key
        assert (await bus.damaged()).damaged == ()
        async with bus.subscribe("a.>", consumer="reader") as deliveries:
            delivery = await deliveries.receive()
            assert delivery is not None
            assert await delivery.load() == content(10), "the consumer goes on where it was"
        again = await bus.publish("a.b", content(3), key="k3")
        assert again.duplicate


async def test_a_second_backup_copies_what_is_new_and_drops_what_is_gone(tmp_path: Path) -> None:
    """Files never change, so each is copied once; uploads under way and tokens come along."""
    data, copy = tmp_path / "data", tmp_path / "copy"
    async with running_broker(data) as url, Client(url) as bus:
        first = await bus.publish("a", content(0))
        await bus.publish("a", content(3))
        assert (await backup(data, copy))["files"] == 2
        await bus.delete(first.id)
        await bus.publish("a", content(6))
        async with aiohttp.ClientSession(url) as http:
            headers = {"Tus-Resumable": "1.0.0", "Upload-Length": "1000000"}
            async with http.post("/v1/topics/a/uploads", headers=headers) as answer:
                upload = answer.headers["Location"]
        token = TokenFile(data).create(TokenPlan("late"))
        assert (await backup(data, copy))["messages"] == 2
    names = {path.name for path in (data / "frames").iterdir()}
    assert {path.name for path in (copy / "frames").iterdir()} == names
    assert (copy / "tokens.json").read_bytes() == (data / "tokens.json").read_bytes()
    assert (copy / "tokens.json").stat().st_mode & 0o777 == 0o600
    assert not list(copy.glob("**/*.part")) + list(copy.glob("*.new")) + list(copy.glob("*-wal"))
    assert token and upload
    before = back_up(data, copy)
    assert (before.files, before.bytes, before.missing) == (0, 0, ())


async def test_a_message_without_a_file_is_told_and_all_others_are_copied(tmp_path: Path) -> None:
    """Damage that the broker has not seen yet does not keep a backup from being made."""
    data, copy = tmp_path / "data", tmp_path / "copy"
    async with running_broker(data) as url, Client(url) as bus:
        lost = await bus.publish("a", content(0))
        await bus.publish("a", content(3))
        (data / "frames" / f"{lost.id}.frames").unlink()
        assert (await backup(data, copy, code=1))["missing"] == [lost.id]
    async with running_broker(copy) as url, Client(url) as bus:
        assert [damage.id for damage in (await bus.damaged()).damaged] == [lost.id]
        assert len(await bodies(bus)) == 1


async def test_what_is_no_directory_of_a_broker_or_no_backup_is_refused(tmp_path: Path) -> None:
    """Nothing is overwritten by a mistake; an interrupted backup is taken up."""
    data, other = tmp_path / "data", tmp_path / "other"
    async with running_broker(data) as url, Client(url) as bus:
        await bus.publish("a", content(0))
    other.mkdir()
    (other / "thesis.tex").write_text("x")
    for source, target, words in (
        (other, tmp_path / "copy", "not the data directory"),
        (data, other, "neither empty nor a backup"),
        (data, data, "within each other"),
        (data, data / "copy", "within each other"),
        (data, tmp_path, "within each other"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            back_up(source, target)
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]

    half = tmp_path / "half"
    (half / "frames").mkdir(parents=True)
    (half / "meta.db.new").write_bytes(b"half of it")
    assert back_up(data, half).messages == 1
    (half / "meta.db-wal").touch()
    with pytest.raises(InvalidRequest, match="a broker runs in"):
        back_up(data, half)

    shutil.copytree(data, tmp_path / "newer")
    with sqlite3.connect(tmp_path / "newer/meta.db") as rows:
        rows.execute("PRAGMA user_version = 99")
    rows.close()
    with pytest.raises(StoreVersion, match="99"):
        back_up(tmp_path / "newer", tmp_path / "copy")
