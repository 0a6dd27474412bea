"""Several publish under one key at the same time: one message is stored, and everybody gets its receipt."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import cast

import numpy as np
import pytest

from tensorbus.bus.client import Client, Progress, Receipt
from tensorbus.bus.client.sync import SyncClient
from tensorbus.bus.testing import running_broker

TOPIC, KEY = "updates.round", "round-1/site-a"


async def stored(url: str) -> str:
    """The id of the only message that there is."""
    async with Client(url) as bus:
        (found,) = [info.id async for info in bus.messages()]
        return found


def check(receipts: list[Receipt], message: str) -> None:
    """All are of this message; one of them says that it was stored by its call."""
    assert {receipt.id for receipt in receipts} == {message}
    assert sorted(receipt.duplicate for receipt in receipts) == [False] + [True] * (len(receipts) - 1)


async def test_small_messages(tmp_path: Path) -> None:
    """In one lane, in one request with others, and by another client."""
    async with running_broker(tmp_path) as url, Client(url) as one, Client(url) as two:
        calls = [(one, two)[number % 2].publish(TOPIC, b"%d" % number, key=KEY) for number in range(40)]
        check(list(await asyncio.gather(*calls)), await stored(url))


@pytest.mark.parametrize("elements", [1 << 19, 1 << 22], ids=["in one request", "resumable"])
async def test_small_messages_beside_a_large_one(tmp_path: Path, elements: int) -> None:
    """They take the place of what has not come as a whole; its publisher hears of them."""
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def wait_there(progress: Progress) -> None:
        if progress.bytes_on_wire and not reached.is_set():
            reached.set()
            await go_on.wait()

    container = {"w": np.zeros(elements, np.float32)}
    async with running_broker(tmp_path) as url, Client(url) as one, Client(url) as two:
        large = asyncio.create_task(one.publish(TOPIC, container, key=KEY, progress=wait_there))
        await asyncio.wait_for(reached.wait(), 10)
        small = [bus.publish(TOPIC, b"%d" % number, key=KEY) for bus in (one, two) for number in range(10)]
        receipts = list(await asyncio.gather(*small))
        go_on.set()
        check([*receipts, await large], await stored(url))


@pytest.mark.parametrize("size", [100, 1 << 20, 12 << 20], ids=["small", "in one request", "resumable"])
async def test_threads_of_a_plain_program(tmp_path: Path, size: int) -> None:
    """Four threads and two clients, which begin at once."""
    together = Barrier(4)

    def publish(bus: SyncClient, number: int) -> Receipt:
        together.wait()
        return bus.publish(TOPIC, bytes([number]) * size, key=KEY)

    def publish_all(url: str) -> list[Receipt]:
        with SyncClient(url) as one, SyncClient(url) as two, ThreadPoolExecutor(4) as threads:
            calls = [threads.submit(publish, (one, two)[number % 2], number) for number in range(4)]
            return [call.result(timeout=60) for call in calls]

    async with running_broker(tmp_path) as url:
        receipts = await asyncio.to_thread(publish_all, url)
        message = await stored(url)
        check(receipts, message)
        async with Client(url) as bus:
            content = cast(bytes, await (await bus.fetch(message)).load())
        (winner,) = [number for number, receipt in enumerate(receipts) if not receipt.duplicate]
        assert content == bytes([winner]) * size
