"""A client that knows two brokers of a JetStream: one is killed in the midst of what it does there."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Generator
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest

from storing import Gateways, NatsServers
from tensorbus import Client
from tensorbus.bus.client import ClientSettings, Progress

MIB = 1 << 20


@pytest.fixture
def gateways(tmp_path: Path, nats_server: NatsServers) -> Generator[Gateways]:
    """Two brokers of a new store, of which one leads."""
    name = "h" + hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]
    with Gateways(tmp_path, f"{nats_server.address}&name={name}") as running:
        for _ in range(2):
            running.start()
        running.leader()
        for number in range(2):
            running.ready(number)
        yield running


def values(size: int) -> npt.NDArray[np.float64]:
    """Bytes that are all different."""
    return np.random.default_rng(size).standard_normal(size // 8)


class Halfway:
    """Kills a broker when a transfer through it has come so far."""

    def __init__(self, gateways: Gateways, number: int, size: int) -> None:
        self._gateways = gateways
        self._number = number
        self._size = size
        self.done = False

    async def __call__(self, progress: Progress) -> None:
        if not self.done and progress.bytes_on_wire >= self._size:
            self.done = True
            self._gateways.kill(self._number)


async def test_an_upload_goes_on_at_the_other(gateways: Gateways) -> None:
    """At the byte that the brokers have; what is stored is whole."""
    leader = gateways.leader()
    first = 1 - leader
    sent = values(64 * MIB)
    kill = Halfway(gateways, first, 24 * MIB)
    async with Client([gateways.urls[first], gateways.urls[leader]]) as bus:
        receipt = await bus.publish("big", {"w": sent}, progress=kill)
        assert kill.done
        assert receipt.resumed > 0
        assert bus.url == gateways.urls[leader]
        found = cast("dict[str, npt.NDArray[np.float64]]", await (await bus.fetch(receipt.id)).load())
        assert np.array_equal(found["w"], sent)
        assert [info.id async for info in bus.messages()] == [receipt.id]


async def test_a_download_goes_on_at_the_other(gateways: Gateways) -> None:
    """What is sealed can be had from any broker at once, also when it was the leader that died."""
    leader = gateways.leader()
    sent = values(64 * MIB)
    async with Client([gateways.urls[leader], gateways.urls[1 - leader]]) as bus:
        receipt = await bus.publish("big", {"w": sent})
        message = await bus.fetch(receipt.id)
        kill = Halfway(gateways, leader, 16 * MIB)
        found = cast("dict[str, npt.NDArray[np.float64]]", await message.load(progress=kill))
        assert kill.done
        assert np.array_equal(found["w"], sent)
        assert bus.url == gateways.urls[1 - leader]


async def test_small_messages_and_deliveries_go_on_at_the_other(gateways: Gateways) -> None:
    """In shared requests, one by one and as they come: each is stored once, and settled once by each."""
    leader, count = gateways.leader(), 200
    settings = ClientSettings(retry_for=30)
    async with Client([gateways.urls[leader], gateways.urls[1 - leader]], settings=settings) as bus:
        turn = asyncio.Semaphore(16)

        async def publish(number: int) -> str:
            async with turn:
                if number == count // 2:
                    gateways.kill(leader)
                return (await bus.publish("few", b"%d" % number, key=f"{number}")).id

        async def work(prefetch: int) -> list[str]:
            settled: list[str] = []
            async with bus.subscribe("few", consumer=f"c{prefetch}", prefetch=prefetch) as deliveries:
                while len(settled) < count:
                    delivery = await anext(deliveries)
                    await delivery.ack()  # also of what the other broker has handed over
                    settled.append(delivery.id)
            return settled

        one_by_one, as_they_come, *stored = await asyncio.gather(
            work(1), work(4), *(publish(number) for number in range(count))
        )
        assert len(set(cast("list[str]", stored))) == count
        assert set(one_by_one) == set(as_they_come) == set(stored)
        assert bus.url == gateways.urls[1 - leader]
        assert [consumer.backlog for consumer in await bus.consumers()] == [0, 0]
