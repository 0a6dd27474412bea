"""subscribe's settings of a consumer, and `tensorbus dead`: as processes, against a real broker."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from tensorbus.bus.client import Client
from tensorbus.bus.testing import running_broker

ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("TENSORBUS_")}


async def run(url: str, *arguments: str) -> tuple[int, str, str]:
    """Exit code and both outputs of a command."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tensorbus",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**ENVIRONMENT, "TENSORBUS_URL": url},
    )
    out, err = await asyncio.wait_for(process.communicate(), timeout=60)
    return process.returncode or 0, out.decode(), err.decode()


@pytest.fixture
async def url(tmp_path: Path) -> AsyncGenerator[str]:
    """A running broker."""
    async with running_broker(tmp_path / "data") as where:
        yield where


async def refused(bus: Client, count: int) -> list[str]:
    """Have a worker refuse so many messages; their letters."""
    async with bus.subscribe("notes", "worker") as deliveries:
        for number in range(count):
            await bus.publish("notes", str(number).encode())
            delivery = await deliveries.receive()
            assert delivery is not None
            await delivery.term(f"number {number}")
    return [info.id async for info in bus.dead_letters()]


async def test_letters_are_listed_replayed_and_removed(url: str) -> None:
    """For people as a table, for programs as JSON; replayed by id or all together."""
    async with Client(url) as bus:
        letters = await refused(bus, 3)
        code, out, _ = await run(url, "dead", "list")
        assert code == 0
        assert "number 1" in out
        code, out, _ = await run(url, "dead", "list", "dead.worker", "--json")
        assert [json.loads(line)["dead"]["reason"] for line in out.splitlines()] == [
            "number 0",
            "number 1",
            "number 2",
        ]
        code, out, _ = await run(url, "dead", "replay", letters[0], "--json")
        assert (code, json.loads(out)["topic"]) == (0, "notes")
        code, out, _ = await run(url, "dead", "replay", "--all", "dead.*")
        assert (code, len(out.splitlines())) == (0, 2)
        assert [info async for info in bus.dead_letters()] == []
        async with bus.subscribe("notes", "worker", prefetch=3) as deliveries:
            for _ in range(3):
                delivery = await deliveries.receive()
                assert delivery is not None
                await delivery.term()
        code, out, _ = await run(url, "dead", "purge", "dead.worker")
        assert (code, out) == (0, "3 removed\n")


async def test_what_cannot_be_replayed_is_explained(url: str) -> None:
    """An unknown letter is exit code 4, wrong usage 2."""
    assert (await run(url, "dead", "replay", "0" * 32))[0] == 4
    assert (await run(url, "dead", "replay"))[0] == 2
    code, _, err = await run(url, "dead", "purge", "a..b")
    assert code == 1
    assert "a..b" in err


async def test_subscribe_makes_the_consumer_that_is_wanted(url: str) -> None:
    """Where it begins, how long an attempt may take, and when a message dies."""
    async with Client(url) as bus:
        for number in range(3):
            await bus.publish("notes", str(number).encode())
        code, out, _ = await run(
            *(url, "subscribe", "notes", "--consumer", "worker", "--json", "--count", "2"),
            *("--start", "2", "--ack-wait", "7", "--backoff", "1,5", "--max-deliver", "4"),
            *("--dead-letter", "graveyard"),
        )
        assert (code, [json.loads(line)["seq"] for line in out.splitlines()]) == (0, [2, 3])
        config = (await bus.consumer("worker")).config
        assert (config.start, config.ack_wait, config.backoff) == (2, 7, (1, 5))
        assert (config.max_deliver, config.dead_letter) == (4, "graveyard")
        for wrong in (("--start", "later"), ("--backoff", "1;2"), ("--max-deliver", "0")):
            assert (await run(url, "subscribe", "notes", *wrong))[0] == 2
