"""Tensorbus with its own client at both ends."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import cast

import numpy as np

from tensorbus.bus.client import Client, Delivery, Subscription, TlsSettings
from tensorbus.cli.allocator import keep_large_buffers
from tensorbus.cli.loops import run

from .child import ready, tell
from .load import TOPIC, Load, values


def publish(load: Load) -> None:
    """One state_dict of numpy arrays."""
    keep_large_buffers()

    async def work() -> None:
        container = {"weight": values(load.size)}
        async with _client(load) as bus:
            await bus.topics()
            await asyncio.to_thread(ready)
            started = monotonic()
            await bus.publish(TOPIC, container)
            tell(started=started, finished=monotonic())

    run(work())


def subscribe(load: Load) -> None:
    """Into an array that is there."""
    keep_large_buffers()

    async def work() -> None:
        target = {"weight": np.ones(load.size // 4, np.float32)}
        async with _client(load) as bus, _deliveries(bus, load) as deliveries:
            tell(ready=True)
            delivery = await anext(deliveries)
            await delivery.load(into=target)
            finished = monotonic()
            await delivery.ack()
            tell(finished=finished, received=load.size)

    run(work())


def publish_small(load: Load) -> None:
    """Many small messages, ``load.window`` at a time."""

    async def work() -> None:
        sent = [0.0] * load.count
        body = bytes(load.size)
        numbers = iter(range(load.count))

        async def one_after_another(bus: Client) -> None:
            for number in numbers:
                if load.rate:
                    await asyncio.sleep(started + number / load.rate - monotonic())
                sent[number] = monotonic()
                await bus.publish(TOPIC, body, headers={"n": number})

        async with _client(load) as bus:
            await bus.topics()
            await asyncio.to_thread(ready)
            started = monotonic()
            await asyncio.gather(*(one_after_another(bus) for _ in range(load.window)))
            tell(started=started, finished=monotonic(), sent=sent)

    run(work())


def subscribe_small(load: Load) -> None:
    """Deliveries one by one; acknowledged while the next ones come."""

    async def work() -> None:
        got = [0.0] * load.count

        async def settle(delivery: Delivery) -> None:
            await delivery.load()
            got[cast("int", delivery.headers["n"])] = monotonic()
            await delivery.ack()

        async with _client(load) as bus, _deliveries(bus, load, prefetch=256) as deliveries:
            tell(ready=True)
            async with asyncio.TaskGroup() as tasks:
                for _ in range(load.count):
                    tasks.create_task(settle(await anext(deliveries)))
            tell(finished=monotonic(), got=got)

    run(work())


def _client(load: Load) -> Client:
    return Client(load.url, tls=TlsSettings(ca=load.certificate) if load.certificate else None)


def _deliveries(bus: Client, load: Load, prefetch: int = 1) -> Subscription:
    held = max(64, 2 * prefetch)
    return bus.subscribe(TOPIC, consumer="bench", follow=load.follow, max_in_flight=held, prefetch=prefetch)
