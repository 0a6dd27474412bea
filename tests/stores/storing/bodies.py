"""Messages that are published and read through a broker, without HTTP."""

from __future__ import annotations

import os

from tensorbus.bus.broker import Broker
from tensorbus.bus.messages import Receipt
from tensorbus.streaming.raw import RawEncoder


def frames(size: int) -> bytes:
    """The body of a message with ``size`` random bytes in it."""
    encoder = RawEncoder({}, "text/plain", size)
    head = encoder.open()
    content = os.urandom(size)
    return head + b"".join(h + bytes(p) for h, p in encoder.slices(content)) + encoder.close()


async def publish(broker: Broker, body: bytes, key: str | None = None) -> Receipt:
    """Publish a message."""
    upload = await broker.begin("t", key, len(body))
    if isinstance(upload, Receipt):
        return upload
    async with upload:
        await upload.write(body)
        return await upload.seal()


async def read(broker: Broker, message_id: str) -> bytes:
    """The body of a message."""
    async with await broker.open_reader(message_id) as reader:
        return b"".join([bytes(chunk) async for chunk in reader])
