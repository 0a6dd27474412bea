"""Publishes a first model and so many updates to it, before there is an aggregator.

python bench/wholerounds/publisher.py URL CODEC MIB UPDATES
"""

from __future__ import annotations

import asyncio
import sys

import numpy as np

from tensorbus.aggregator.headers import UpdateHeaders
from tensorbus.aggregator.job import seed_topic, update_key, updates_topic
from tensorbus.bus.client import Client

JOB = "bench"
ACROSS = 1 << 20
"""Elements of a tensor: 4 MiB."""


async def main(url: str, codec: str, mib: str, updates: str) -> None:
    """One after another; no two updates are alike."""
    chance = np.random.default_rng(1)
    model = {f"layer.{at}": chance.standard_normal(ACROSS, np.float32) for at in range(int(mib) // 4)}
    async with Client(url) as bus:
        await bus.publish(seed_topic(JOB), model, codec=codec)
        for at in range(int(updates)):
            for values in model.values():
                values[at::97] += 0.01
            headers = UpdateHeaders(f"s{at}", 1, 10 + at).to_headers(JOB)
            key = update_key(JOB, 1, f"s{at}")
            await bus.publish(updates_topic(JOB), model, codec=codec, headers=headers, key=key)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
