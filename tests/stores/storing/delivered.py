"""Small messages on a broker in virtual time, and what is handed over of them."""

from __future__ import annotations

from tensorbus.bus.broker import Broker, BrokerSettings
from tensorbus.bus.broker.uploads import Upload
from tensorbus.bus.consumers import DeliveryInfo
from tensorbus.bus.messages import Receipt
from tensorbus.streaming.raw import RawEncoder


def body(text: bytes = b"hello") -> bytes:
    """The frames of a small message."""
    encoder = RawEncoder({}, "text/plain", len(text))
    opening = encoder.open()
    slices = b"".join(head + bytes(payload) for head, payload in encoder.slices(text))
    return opening + slices + encoder.close()


async def publish(broker: Broker, topic: str = "t", text: bytes = b"hello") -> Receipt:
    """Publish a small message."""
    frames = body(text)
    upload = await broker.begin(topic, size=len(frames))
    assert isinstance(upload, Upload)
    await upload.write(frames)
    return await upload.seal()


async def one(broker: Broker, name: str = "c", inline: int = 0) -> DeliveryInfo:
    """The next delivery, which is there."""
    (delivery,) = await broker.pull(name, 1, inline=inline)
    return delivery


async def ids(broker: Broker, name: str = "c") -> list[str]:
    """Messages of what can be pulled now."""
    return [delivery.message.id for delivery in await broker.pull(name, 100)]


SETTINGS = BrokerSettings(sweep_interval=0)
