"""Publishers and workers at several brokers, who check that nothing is lost, doubled or spoiled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np

from tensorbus import Client
from tensorbus.bus.client.delivery import Delivery
from tensorbus.errors import AlreadySettled, DeliveryExpired

MIB = 1 << 20
CONSUMER = "c"
_PATIENCE = 180.0
"""Seconds for which something has to go on, on a slow machine too."""


def values(count: int, size: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """What is in the message of this number: about ``size`` bytes, of a length of its own."""
    return np.random.default_rng(count).standard_normal(size // 8 + count)


class Traffic:
    """Publishers and workers that go on whatever happens.

    A worker that is cut off may get what another one has got; but what is settled stays so.

    Args:
        size: bytes of a message.
        ack_wait: seconds after which a delivery that is not settled comes again.

    Attributes:
        stored: ids of acknowledged messages by their keys.
        settled: ids of messages whose delivery was acknowledged.
    """

    def __init__(self, size: int = 4 * MIB, ack_wait: float = 20) -> None:
        self._size = size
        self._ack_wait = ack_wait
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
        await self._until(lambda: len(self.stored) >= goal)

    async def end(self, bus: Client) -> None:
        """Publish no more, wait until all is settled, and stop; then nothing is to be had any more."""
        self._stop.set()
        await self._until(lambda: all(task.done() for task in self._publishing))
        await self._until(lambda: self.settled == set(self.stored.values()))
        for task in self._working:
            task.cancel()
        await asyncio.wait(self._working)
        at_the_end = await bus.consumer(CONSUMER)
        assert (at_the_end.backlog, at_the_end.ack_pending) == (0, 0)
        async with bus.subscribe("big", consumer=CONSUMER, ack_wait=self._ack_wait) as deliveries:
            assert await deliveries.receive(timeout=0.5) is None

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(_PATIENCE):
            while not condition():
                for task in (*self._publishing, *self._working):
                    if task.done():
                        task.result()
                await asyncio.sleep(0.05)

    async def _publish(self, bus: Client, name: str) -> None:
        count = 0
        while not self._stop.is_set():
            key = f"{name}-{count}"
            receipt = await bus.publish(
                "big", {"w": values(count, self._size)}, key=key, headers={"count": count}
            )
            assert receipt.id not in self.stored.values()
            self.stored[key] = receipt.id
            count += 1

    async def _work(self, bus: Client) -> None:
        async with bus.subscribe("big", consumer=CONSUMER, ack_wait=self._ack_wait) as deliveries:
            async for delivery in deliveries:
                await self._deal_with(delivery)

    async def _deal_with(self, delivery: Delivery) -> None:
        expected = values(int(str(delivery.headers["count"])), self._size)
        found = {"w": np.zeros_like(expected)}
        await delivery.load(found)
        assert np.array_equal(found["w"], expected)
        try:
            await delivery.ack()
        except DeliveryExpired:
            return  # it comes again
        except AlreadySettled:
            pass  # by an acknowledgement of this, whose answer was lost, or after it had run out of time here
        self.settled.add(delivery.id)
