"""Sites whose updates are the same in each run of a job, whenever they are sent, and what a job came to."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from tensorbus.aggregator.headers import UpdateHeaders
from tensorbus.aggregator.job import JobSpec, update_key, updates_topic
from tensorbus.aggregator.models import last_models, newest_model
from tensorbus.aggregator.participant import Participant
from tensorbus.bus.client import Client

Arrays = dict[str, npt.NDArray[Any]]
AGAIN = 0.01
"""Seconds between two looks at the broker."""


def state(seed: int, count: int = 400_000) -> Arrays:
    """Two tensors, one of several slices."""
    values = np.random.default_rng(seed)
    return {
        "long": values.normal(size=count).astype(np.float32),
        "matrix": values.normal(size=(30, 20)).astype(np.float32),
    }


async def submit(bus: Client, job: str, site: str, number: int, seed: int, examples: float = 8) -> None:
    """A site's update to a round, as a participant sends it."""
    headers = UpdateHeaders(site, number, examples, {"loss": 1 / number}).to_headers(job)
    await bus.publish(updates_topic(job), state(seed), headers=headers, key=update_key(job, number, site))


async def until_model(bus: Client, job: str, number: int) -> None:
    """Wait until the model of a round is sealed. Raises JobCancelled: it will not be."""
    while (model := await newest_model(bus, job)) is None or model.round < number:
        await asyncio.sleep(AGAIN)


@dataclass
class Answers:
    """All updates of a job, each as soon as its round is open, in an order that is the same each time.

    In buffered mode the second one comes from a site that is a round behind, from the second round on.

    Attributes:
        done: the round that was answered last.
    """

    bus: Client
    spec: JobSpec
    done: int = 0

    async def run(self) -> None:
        """To the job's end. Raises JobCancelled."""
        job = self.spec.job
        for number in range(1, self.spec.rounds + 1):
            await until_model(self.bus, job, number)
            await submit(self.bus, job, "a", number, 10 * number)
            late = self.spec.mode == "buffered" and number > 1
            site, version = ("c", number - 1) if late else ("b", number)
            await submit(self.bus, job, site, version, 10 * number + 1, 33)
            self.done = number

    async def at_rest(self) -> None:
        """Wait until every model that is sealed has its answers."""
        while max(await last_models(self.bus, self.spec.job, 1), default=0) > self.done < self.spec.rounds:
            await asyncio.sleep(AGAIN)


async def look_on(bus: Client, job: str) -> Arrays:
    """A site that reads each model as it comes, and answers none; the final one."""
    participant = Participant(bus, job=job, site="onlooker")
    async for task in participant.rounds():
        await task.load()
    return cast(Arrays, await participant.final.load())


def same(first: Arrays, second: Arrays) -> None:
    """Bit for bit."""
    assert list(first) == list(second)
    for name, values in first.items():
        assert values.dtype == second[name].dtype
        assert values.tobytes() == second[name].tobytes(), name
