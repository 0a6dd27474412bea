"""The script of a site. It names no codec: the job brings it along with every model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tensorbus import Client, Participant
from tensorbus.bus.client import ClientSettings
from trainings.trainer import Trainer

PATIENT = ClientSettings(idle_timeout=86_400.0, retry_for=86_400.0)
"""These trainings may be stopped for a while, and continued."""


@dataclass
class Diary:
    """What a site saw: losses, and the bytes of its messages as the bus counted them."""

    training: list[float] = field(default_factory=list[float])
    held_out: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])
    final: tuple[float, int] = (0.0, 0)
    down: int = 0
    up: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a site stands in its job, and on the disk."""

    job: str
    site: int
    sites: int
    steps: int
    base: Path
    state: Path


async def take_part(url: str, place: Place, trainer: Trainer) -> Diary:
    """Train in every round of the job; the global model is evaluated before each, and after the last."""
    diary = Diary()
    part, parts = place.site, place.sites
    async with Client(url, settings=PATIENT) as bus:
        participant = Participant(
            bus, job=place.job, site=f"site-{place.site}", base=place.base, state=place.state
        )
        async for task in participant.rounds():
            await task.load(into=trainer.weights)
            diary.down += task.model.info.bytes
            diary.held_out.append(trainer.evaluate(part, parts, final=False))
            losses = trainer.train(place.steps)
            diary.training += losses
            receipt = await task.submit(
                trainer.weights,
                num_examples=place.steps * trainer.recipe.batch,
                metrics={"loss": sum(losses) / len(losses)},
            )
            if receipt is not None:
                diary.up += receipt.bytes_on_wire
        final = participant.final
        await final.load(into=trainer.weights)
        diary.down += final.info.bytes
        diary.held_out.append(trainer.evaluate(part, parts, final=False))
        diary.final = trainer.evaluate(part, parts, final=True)
    return diary
