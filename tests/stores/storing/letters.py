"""Messages that cannot be dealt with, on a broker in virtual time."""

from __future__ import annotations

from tensorbus.bus.broker import Broker, BrokerSettings
from tensorbus.bus.broker.uploads import Upload
from tensorbus.bus.consumers import DeliveryInfo
from tensorbus.bus.messages import MessageInfo, Receipt
from tensorbus.streaming.raw import RawEncoder

SETTINGS = BrokerSettings(sweep_interval=0)
SMALL, LARGE = b"hello", bytes(200_000)
"""Kept with its row, and in a file."""


def body(text: bytes) -> bytes:
    """The frames of a message."""
    encoder = RawEncoder({"site": "a"}, "text/plain", len(text))
    opening = encoder.open()
    slices = b"".join(head + bytes(payload) for head, payload in encoder.slices(text))
    return opening + slices + encoder.close()


async def publish(broker: Broker, text: bytes = SMALL, topic: str = "t", key: str | None = None) -> Receipt:
    """Publish a message."""
    frames = body(text)
    upload = await broker.begin(topic, key, size=len(frames))
    assert isinstance(upload, Upload)
    await upload.write(frames)
    return await upload.seal()


async def stored(broker: Broker, message_id: str) -> bytes:
    """The frames of a message."""
    async with await broker.open_reader(message_id) as reader:
        return b"".join([bytes(chunk) async for chunk in reader])


async def one(broker: Broker, name: str = "c") -> DeliveryInfo:
    """The next delivery, which is there."""
    (delivery,) = await broker.pull(name, 1)
    return delivery


async def ids(broker: Broker, name: str = "c") -> list[str]:
    """Messages of what can be pulled now."""
    return [delivery.message.id for delivery in await broker.pull(name, 100)]


async def letters(broker: Broker, topic: str = ">") -> list[MessageInfo]:
    """All dead letters."""
    return list((await broker.dead_letters(topic)).messages)


async def refuse(broker: Broker, name: str = "c", reason: str = "no good") -> MessageInfo:
    """Take the next delivery and refuse it; the letter that it becomes."""
    await broker.term(name, (await one(broker, name)).token, reason)
    return (await letters(broker, f"dead.{name}"))[-1]
