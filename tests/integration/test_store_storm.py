"""Publishers and workers who do everything that they may, at the same time."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest

from tensorbus.bus.broker import Broker
from tensorbus.bus.broker.uploads import Upload
from tensorbus.bus.consumers import ConsumerConfig, DeliveryInfo
from tensorbus.bus.stores.file import FileStore
from tensorbus.errors import AlreadySettled, Conflict
from tensorbus.streaming.raw import RawEncoder

PUBLISHERS, MESSAGES, WORKERS = 4, 25, 6


def body() -> list[bytes]:
    """The frames of a message."""
    encoder = RawEncoder({}, "text/plain", 3)
    opening = encoder.open()
    return [opening, *(head + bytes(payload) for head, payload in encoder.slices(b"abc")), encoder.close()]


async def publish(broker: Broker, chance: random.Random) -> str | None:
    """Publish a message with pauses, so that it is followed; now and then it is given up half-way: None."""
    upload = await broker.begin("t")
    assert isinstance(upload, Upload)
    async with upload:
        for frame in body():
            await upload.write(memoryview(frame))
            await asyncio.sleep(chance.choice([0, 0, 0.002]))
            if chance.random() < 0.05:
                return None
        return (await upload.seal()).id


class Worker:
    """Pulls, and acknowledges, gives back, refuses to answer or goes away, as chance has it."""

    def __init__(self, broker: Broker, seed: int) -> None:
        self._broker = broker
        self._chance = random.Random(seed)
        self.acked: list[str] = []

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            follow = self._chance.random() < 0.5
            pull = asyncio.create_task(self._broker.pull("c", self._chance.randint(1, 3), 0.5, follow))
            if self._chance.random() < 0.2:
                await asyncio.sleep(0.001)
                pull.cancel()
                await asyncio.wait([pull])
            if pull.cancelled():
                continue
            for delivery in await pull:
                await self._treat(delivery)

    async def _treat(self, delivery: DeliveryInfo) -> None:
        todo = self._chance.random()
        try:
            if todo < 0.2:
                await self._broker.nak("c", delivery.token, self._chance.choice([0, 0.005]))
            elif todo < 0.3:
                await self._broker.in_progress("c", delivery.token)
            elif todo > 0.4:
                await self._broker.ack("c", delivery.token)
                self.acked.append(delivery.message.id)
        except (AlreadySettled, Conflict):
            pass  # it was too late, or the message is still open: it comes again


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_every_sealed_message_is_acknowledged_exactly_once(tmp_path: Path, seed: int) -> None:
    """However deliveries are given back, lost, followed or cancelled, none is forgotten or acked twice."""
    chance = random.Random(seed)

    async def publisher() -> list[str]:
        sent = [await publish(broker, chance) for _ in range(MESSAGES)]
        return [message for message in sent if message is not None]

    async with Broker(FileStore(tmp_path)) as broker:
        await broker.ensure_consumer("c", ConsumerConfig("t", ack_wait=0.05, max_ack_pending=5))
        workers = [Worker(broker, seed * 100 + number) for number in range(WORKERS)]
        running = [asyncio.create_task(worker.run()) for worker in workers]
        sealed = [
            message
            for part in await asyncio.gather(*(publisher() for _ in range(PUBLISHERS)))
            for message in part
        ]
        async with asyncio.timeout(60):
            while True:
                info = await broker.consumer("c")
                if not info.ack_pending and not info.backlog:
                    break
                await asyncio.sleep(0.01)
        for task in running:
            task.cancel()
        await asyncio.wait(running)
        assert all(task.cancelled() for task in running)
    acked = Counter(message for worker in workers for message in worker.acked)
    assert acked == Counter(sealed)
    async with Broker(FileStore(tmp_path)) as broker:
        assert await broker.pull("c", 100, 0.1) == []
