"""Publishers and workers at several brokers, who check that nothing is lost, doubled or spoiled."""

from __future__ import annotations

import asyncio

import numpy as np

from tensorbus import Client
from tensorbus.bus.client.delivery import Delivery
from tensorbus.errors import AlreadySettled, DeliveryExpired

MIB = 1 << 20
CONSUMER = "c"


def values(count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """What is in the message of this number: some MiB, of a size of its own."""
    return np.random.default_rng(count).standard_normal(4 * MIB // 8 + count)


class Traffic:
    """Publishers and workers that go on whatever happens.

    Attributes:
        stored: ids of acknowledged messages by their keys.
        settled: ids of messages whose delivery was acknowledged.
    """

    def __init__(self) -> None:
        self.stored: dict[str, str] = {}
        self.settled: set[str] = set()
        self._stop = asyncio.Event()
        self._publishing: list[asyncio.Task[None]] = []
        self._working: list[asyncio.Task[None]] = []

    def begin(self, bus: Client, name: str) -> None:
        """One publisher and one worker more."""
        self._publishing.append(asyncio.create_task(self._publish(bus, name)))
        self._working.append(asyncio.create_task(self._work(bus)))

    async def more(self, count: int) -> None:
        """Until so many more messages are stored."""
        goal = len(self.stored) + count
        while len(self.stored) < goal:
            for task in (*self._publishing, *self._working):
                if task.done():
                    task.result()
            await asyncio.sleep(0.05)

    async def end(self) -> None:
        """Publish no more, wait until all is settled, and stop."""
        self._stop.set()
        await asyncio.gather(*self._publishing)
        while self.settled != set(self.stored.values()):
            for task in self._working:
                if task.done():
                    task.result()
            await asyncio.sleep(0.05)
        for task in self._working:
            task.cancel()
        await asyncio.wait(self._working)

    async def _publish(self, bus: Client, name: str) -> None:
        count = 0
        while not self._stop.is_set():
            key = f"{name}-{count}"
            receipt = await bus.publish("big", {"w": values(count)}, key=key, headers={"count": count})
            assert receipt.id not in self.stored.values()
            self.stored[key] = receipt.id
            count += 1

    async def _work(self, bus: Client) -> None:
        async with bus.subscribe("big", consumer=CONSUMER, ack_wait=20) as deliveries:
            async for delivery in deliveries:
                assert delivery.id not in self.settled
                await self._deal_with(delivery)

    async def _deal_with(self, delivery: Delivery) -> None:
        expected = values(int(str(delivery.headers["count"])))
        found = {"w": np.zeros_like(expected)}
        await delivery.load(found)
        assert np.array_equal(found["w"], expected)
        try:
            await delivery.ack()
        except DeliveryExpired:
            return  # it comes again
        except AlreadySettled:
            pass  # by an acknowledgement of this, whose answer was lost
        self.settled.add(delivery.id)
