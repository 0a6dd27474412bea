"""A site of the benchmark: it holds no model, so that several fit on one machine.

    python bench/wholerounds/site.py URL SITE STATE UPDATE

The global model is decoded, slice by slice, and dropped; the update is published from a safetensors file that
all sites have in common. Where updates are changes, the model is kept as a file, as every site does then.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import resident

from tensorbus.aggregator.participant import Participant
from tensorbus.bus.client import Client
from tensorbus.codecs.base import Sink
from tensorbus.codecs.item import ItemSpec
from tensorbus.codecs.pipeline import Pipeline

JOB = "bench"


class Dropped(Sink):
    """A container of which nothing is kept."""

    def __init__(self) -> None:
        self._room = bytearray()

    def begin(self, spec: ItemSpec) -> None:
        """Needs no room."""

    def buffer(self, spec: ItemSpec, offset: int, count: int) -> memoryview:
        """The same for every slice."""
        size = count * spec.dtype.itemsize
        if len(self._room) < size:
            self._room = bytearray(size)
        return memoryview(self._room)[:size]

    def commit(self, spec: ItemSpec, offset: int, count: int) -> None:
        """It is dropped."""

    def finish(self) -> object:
        """Nothing."""

    def abort(self) -> None:
        """Nothing to release."""


async def main(url: str, site: str, state: str, update: str) -> None:
    """One round; a line when it is ready, and one with its figures."""
    async with Client(url) as bus:
        await bus.topics()
        print(json.dumps({"ready": True}), flush=True)
        before = resident.forget_peak()
        async for task in Participant(bus, job=JOB, site=site, state=state).rounds():
            if not any(stage.against_base for stage in Pipeline.parse(task.spec.up).stages):
                await task.arriving.decode(lambda _: Dropped())
            loaded = time.time()
            receipt = await task.submit(Path(update), num_examples=100 + int(site[1:]))
            assert receipt is not None
            told = {"loaded": loaded, "sealed": time.time(), "wire": receipt.bytes_on_wire}
            print(json.dumps(told | {"growth": resident.peak() - before}), flush=True)
            return


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
