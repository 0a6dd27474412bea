"""A publisher to be killed: ``resuming_publisher.py URL SOURCE CODEC KEY SEED``, all of one message.

SOURCE is ``memory`` or the path of a safetensors file; SEED makes the values in memory. It says ``at BYTES``
for each step of the progress, and ``done ID RESUMED ENCODED`` in the end.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import numpy as np

from tensorbus.bus.client import Client, ClientSettings, Progress, publishing
from tensorbus.streaming.container import ContainerEncoder

encoders: list[ContainerEncoder] = []


class Counted(ContainerEncoder):
    """One that can be asked afterwards how much it had to encode."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        encoders.append(self)


async def main(url: str, source: str, codec: str, key: str, seed: int) -> None:
    """Publish."""
    values = np.random.default_rng(seed).standard_normal(6_000_000).astype(np.float32)
    container = {"a": values[:100], "w": values[100:]} if source == "memory" else source
    setattr(publishing, "ContainerEncoder", Counted)  # noqa: B010 - a type checker minds the other way

    async def tell(progress: Progress) -> None:
        print("at", progress.bytes_on_wire, flush=True)
        await asyncio.sleep(0.02)

    async with Client(url, settings=ClientSettings(retry_for=20)) as bus:
        receipt = await bus.publish("models.killed", container, codec, key=key, progress=tell)
    print("done", receipt.id, receipt.resumed, encoders[0].encoded, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5])))
