"""One experiment from beginning to end: a broker, an aggregator and all sites, or a central training."""

# safetensors is typed in part only.
# pyright: reportUnknownVariableType=false

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file

from tensorbus import Client
from tensorbus.aggregator.job import JobSpec
from tensorbus.aggregator.worker import Aggregator
from tensorbus.bus.server import ServerSettings
from tensorbus.bus.testing import running_broker
from tensorbus.codecs.pipeline import Pipeline
from trainings.experiment import Experiment
from trainings.results import Result
from trainings.site import PATIENT, Diary, Place, take_part
from trainings.trainer import Trainer, digest

JOB = "convergence"
PATIENCE = 86_400.0
"""Seconds for a round, and for a transfer of which no byte moves: as `PATIENT`."""


def run(experiment: Experiment, models: Path) -> Result:
    """Run it; ``models`` is where pretrained models are, or are put."""
    began = time.process_time()
    trainers = experiment.trainers(models)
    if experiment.sites:
        folder = Path(tempfile.mkdtemp(prefix="tensorbus-convergence-"))
        try:
            diaries = asyncio.run(_federate(experiment, trainers, folder))
        finally:
            shutil.rmtree(folder)
    else:
        diaries = [_central(experiment, trainers[0])]
    return Result(
        experiment=experiment.to_json(),
        held_out=[_mean(parts) for parts in zip(*(diary.held_out for diary in diaries), strict=True)],
        final=_mean([diary.final for diary in diaries]),
        training=[sum(step) / len(step) for step in zip(*(diary.training for diary in diaries), strict=True)],
        down=sum(diary.down for diary in diaries),
        up=sum(diary.up for diary in diaries),
        parameters=sum(value.numel() for value in trainers[0].weights.values()),
        digest=digest(trainers[0].weights),
        cpu_seconds=time.process_time() - began,
    )


async def _federate(experiment: Experiment, trainers: Sequence[Trainer], folder: Path) -> list[Diary]:
    """The job, with a real broker on a loopback port; every site and the aggregator have their own client."""
    first = folder / "first.safetensors"
    save_file(trainers[0].weights, first)
    down, up = (Pipeline.parse(codec).to_json() for codec in experiment.directions)
    sites = experiment.sites
    job = JobSpec(
        job=JOB,
        sites=sites,
        rounds=experiment.rounds,
        quorum=sites,
        deadline=PATIENCE,
        down=down,
        up=up,
    )
    async with (
        running_broker(folder / "broker", settings=ServerSettings(idle_timeout=PATIENCE)) as url,
        Client(url, settings=PATIENT) as bus,
    ):
        aggregator = Aggregator(bus, job, init=first, listener=lambda event: None, state=folder / "state")
        async with asyncio.TaskGroup() as group:
            group.create_task(aggregator.run())
            scripts = [
                group.create_task(
                    take_part(
                        url, Place(JOB, site, sites, experiment.steps, first, folder / "state"), trainer
                    )
                )
                for site, trainer in enumerate(trainers)
            ]
        return [script.result() for script in scripts]


def _central(experiment: Experiment, trainer: Trainer) -> Diary:
    """The same steps in one go, evaluated where a federation would be."""
    diary = Diary(held_out=[trainer.evaluate(0, 1, final=False)])
    for _ in range(experiment.rounds):
        diary.training += trainer.train(experiment.steps)
        diary.held_out.append(trainer.evaluate(0, 1, final=False))
    diary.final = trainer.evaluate(0, 1, final=True)
    return diary


def _mean(parts: Sequence[tuple[float, int]]) -> float:
    """Of the sites' parts of the held-out text, each a sum and a number of tokens."""
    return sum(total for total, _ in parts) / sum(count for _, count in parts)
