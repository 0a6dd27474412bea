"""NATS JetStream with its own Python client."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import monotonic

import nats
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, StorageType

from .child import ready, tell
from .load import MIB, Load, pieces
from .nats import CONSUMER, STREAM, SUBJECT


def publish(load: Load) -> None:
    """The large message in messages of 1 MiB, all acknowledged."""
    asyncio.run(_publish(load, [bytes(piece) for piece in pieces(load.size)]))


def publish_small(load: Load) -> None:
    """Many small messages, each with its number in front."""
    rest = bytes(load.size - 8)
    asyncio.run(_publish(load, [number.to_bytes(8, "little") + rest for number in range(load.count)]))


async def _publish(load: Load, bodies: Sequence[bytes]) -> None:
    url = f"nats://127.0.0.1:{load.address[1]}"
    client = await nats.connect(url)  # pyright: ignore[reportUnknownMemberType]
    stream: JetStreamContext = client.jetstream()  # pyright: ignore[reportUnknownMemberType]
    sent = [0.0] * len(bodies)
    numbers = iter(range(len(bodies)))

    async def one_after_another() -> None:
        for number in numbers:
            if load.rate:
                await asyncio.sleep(started + number / load.rate - monotonic())
            sent[number] = monotonic()
            await stream.publish(SUBJECT, bodies[number], timeout=60)

    await asyncio.to_thread(ready)
    started = monotonic()
    await asyncio.gather(*(one_after_another() for _ in range(load.window)))
    tell(started=started, finished=monotonic(), **({"sent": sent} if load.count > 1 else {}))
    await client.close()


def subscribe(load: Load) -> None:
    """The large message's messages, each acknowledged."""
    asyncio.run(_subscribe(load, -(-load.size // MIB), 16))


def subscribe_small(load: Load) -> None:
    """Many small messages, each acknowledged."""
    asyncio.run(_subscribe(load, load.count, 256))


async def _subscribe(load: Load, count: int, batch: int) -> None:
    url = f"nats://127.0.0.1:{load.address[1]}"
    client = await nats.connect(url, pending_size=64 * MIB)  # pyright: ignore[reportUnknownMemberType]
    stream: JetStreamContext = client.jetstream()  # pyright: ignore[reportUnknownMemberType]
    await stream.add_stream(  # pyright: ignore[reportUnknownMemberType]
        name=STREAM, subjects=[SUBJECT], storage=StorageType.FILE
    )
    config = ConsumerConfig(ack_policy=AckPolicy.EXPLICIT, ack_wait=60, max_ack_pending=10_000)
    subscription = await stream.pull_subscribe(SUBJECT, CONSUMER, STREAM, config)
    got = [0.0] * count
    taken = received = 0
    tell(ready=True)
    while taken < count:
        for message in await subscription.fetch(min(batch, count - taken), timeout=60):
            if load.count > 1:
                got[int.from_bytes(message.data[:8], "little")] = monotonic()
            received += len(message.data)
            taken += 1
            await message.ack()
    tell(finished=monotonic(), received=received, **({"got": got} if load.count > 1 else {}))
    await client.close()
