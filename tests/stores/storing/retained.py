"""A broker whose messages come and go by policies, on a clock that is set by hand."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

from tensorbus.bus.broker import Broker, BrokerSettings
from tensorbus.bus.broker.uploads import Upload
from tensorbus.bus.messages import Receipt
from tensorbus.bus.stores.base import Store
from tensorbus.streaming.raw import RawEncoder

HOUR = 3600.0


class Hands:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.time = 1_800_000_000.0

    def wall(self) -> float:
        """Seconds since the epoch."""
        return self.time

    def monotonic(self) -> float:
        """The same seconds."""
        return self.time


def body(size: int = 1000) -> bytes:
    """The frames of a message."""
    encoder = RawEncoder({}, "application/octet-stream", size)
    opening = encoder.open()
    slices = b"".join(head + bytes(payload) for head, payload in encoder.slices(os.urandom(size)))
    return opening + slices + encoder.close()


SIZE = len(body())
"""Bytes of a stored message of a thousand bytes."""


async def publish(broker: Broker, topic: str = "a.b", size: int = 1000, key: str | None = None) -> Receipt:
    """Publish a message."""
    frames = body(size)
    upload = await broker.begin(topic, key, len(frames))
    assert isinstance(upload, Upload)
    async with upload:
        await upload.write(frames)
        return await upload.seal()


async def kept(broker: Broker, topic: str = ">") -> list[str]:
    """The ids of all messages of a filter."""
    return [message.id for message in (await broker.messages(topic, limit=1000)).messages]


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what follows by itself, soon."""
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.001)


def a_broker(store: Store, clock: Hands, window: float = HOUR) -> Broker:
    """One that does nothing by itself; small messages are in rows, others in files."""
    settings = BrokerSettings(sweep_interval=0, inline_bytes=2000, duplicate_window=window)
    return Broker(store, settings, clock)
