"""A region's aggregator in a process of its own, for tests: it can kill itself at one of its events.

    python killable_region.py URL SPEC_JSON PARENT_URL PARENT_JOB SITE STATE [EVENT NTH]

It prints its events; the last line is its memory, in bytes. See killable_aggregator.py.
"""

from __future__ import annotations

import asyncio
import json
import sys
from functools import partial
from pathlib import Path

from killable_aggregator import KillableClient, Listener, memory

from tensorbus.aggregator.job import JobSpec
from tensorbus.aggregator.region import Parent, Region
from tensorbus.aggregator.worker import Aggregator
from tensorbus.bus.client import Client


async def main(
    url: str, spec: str, above: str, job: str, site: str, state: str, fatal: str | None = None, nth: str = "1"
) -> None:
    """Run the region to its end."""
    sys.modules["torch"] = None  # type: ignore[assignment]  an import of it fails from here on
    listener = Listener(fatal, int(nth))
    lower = JobSpec.from_json(spec)
    async with Client(above) as upper, KillableClient(url) as bus:
        bus.listener = listener
        parent = Parent(upper, job, site, Path(state))
        origin = partial(Region, bus, lower, parent)
        await Aggregator(bus, lower, init=None, listener=listener, state=state, origin=origin).run()
    print(json.dumps({"resting": listener.resting, "peak": memory("VmHWM")}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
