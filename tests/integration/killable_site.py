"""A site in a process of its own, for tests: it trains a round, and can kill itself while it sends.

    python killable_site.py URL STATE [BYTES]

It adds 1 to each value of the model. With BYTES it sends itself SIGKILL when so many of its update have left.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from tensorbus.aggregator.participant import Participant
from tensorbus.bus.client import Client, Progress


async def main(url: str, state: str, limit: str = "inf") -> None:
    """One round; prints how many bytes of the update were at the broker before."""

    def told(progress: Progress) -> None:
        if progress.bytes_on_wire >= float(limit):
            os.kill(os.getpid(), signal.SIGKILL)

    async with Client(url) as bus:
        task = await anext(Participant(bus, job="sft", site="a", state=state, up=told).rounds())
        model = cast("dict[str, npt.NDArray[Any]]", await task.load())
        update = {name: values + np.float32(1) for name, values in model.items()}
        receipt = await task.submit(update, num_examples=1)
        assert receipt is not None
        print(receipt.resumed)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
