"""A site of a chaos run, in a process of its own.

    python -m chaos.site URL SITE FOLDER STATE SEED

It submits to a round only when the archive of the test has the round's model and all before it: the broker
deletes what no round needs any more, and the test has to have seen it. The last line that it prints is a
digest of the final model.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sys
from pathlib import Path
from typing import cast

from tensorbus.aggregator.participant import Participant, Task
from tensorbus.bus.client import Client
from tensorbus.errors import RoundClosed

from .training import JOB, Arrays, delay, train

AGAIN = 0.02
"""Seconds between two looks at the archive."""


def digest(model: Arrays) -> str:
    """Of names, dtypes and values."""
    found = hashlib.sha256()
    for name, values in model.items():
        found.update(f"{name} {values.dtype} {values.shape}".encode() + values.tobytes())
    return found.hexdigest()


async def answer(task: Task, site: str, folder: Path, seed: str) -> None:
    """One round."""
    model = cast(Arrays, await task.load())
    await asyncio.sleep(delay(seed, site, task.round))
    while int((folder / "archived").read_text() or 0) < task.round:
        await asyncio.sleep(AGAIN)
    made, examples = train(site, task.round, model)
    await task.submit(made, num_examples=examples)


async def main(url: str, site: str, folder: str, state: str, seed: str) -> None:
    """All rounds."""
    async with Client(url) as bus:
        participant = Participant(bus, job=JOB, site=site, state=state)
        async for task in participant.rounds():
            try:
                await answer(task, site, Path(folder), seed)
            except RoundClosed as late:
                print(f"{site}: {late}", flush=True)
        print(digest(cast(Arrays, await participant.final.load())), flush=True)


if __name__ == "__main__":
    logging.basicConfig()
    asyncio.run(main(*sys.argv[1:]))
