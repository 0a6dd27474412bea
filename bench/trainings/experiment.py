"""Experiment: one training, by all that decides its outcome."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trainings.settings import TOY, LoraSettings, SmallSettings

if TYPE_CHECKING:
    from trainings.trainer import Trainer

MEANING = 1
"""Raised when results of an older version of this program do not compare with new ones."""
Task = Literal["small", "lora", "toy"]
SETTINGS: dict[Task, SmallSettings | LoraSettings] = {
    "small": SmallSettings(),
    "lora": LoraSettings(),
    "toy": TOY,
}


@dataclass(frozen=True, slots=True)
class Experiment:
    """One training.

    Attributes:
        sites: 0 is central training, with no bus in it.
        rounds, steps: of the job, and of training in each round at each site.
        codec: of both directions, or ``A down, B up``.
        seed: decides the first weights and the order of the text, which are so the same for all codecs.
        repeat: tells apart trainings that are equal in all else.
    """

    task: Task
    sites: int
    rounds: int
    steps: int
    codec: str
    seed: int
    repeat: int = 0

    @property
    def group(self) -> str:
        """What is compared with each other: ``small-4``; central training goes with the one site."""
        return f"{self.task}-{max(1, self.sites)}"

    @property
    def directions(self) -> tuple[str, str]:
        """The codec of the models, and that of the updates."""
        down, comma, up = self.codec.removesuffix(" up").partition(" down, ")
        return (down, up) if comma else (self.codec, self.codec)

    @property
    def label(self) -> str:
        """The codec, or ``central``."""
        return self.codec if self.sites else "central"

    def __str__(self) -> str:
        again = f" repeat={self.repeat}" if self.repeat else ""
        return f"{self.group} {self.label!r} seed={self.seed}{again}"

    def to_json(self) -> dict[str, object]:
        """With the settings of its task."""
        return {**asdict(self), "settings": asdict(SETTINGS[self.task]), "meaning": MEANING}

    @property
    def key(self) -> str:
        """16 hex digits; equal for equal experiments, whenever and wherever."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def trainers(self, models: Path) -> list[Trainer]:
        """One for each site, each with its own topics; a single one for central training."""
        from trainings.lora import LoraTrainer
        from trainings.small import SmallTrainer
        from trainings.text import shares, topics

        settings = SETTINGS[self.task]
        total = self.rounds * self.steps
        sites = max(1, self.sites)
        if isinstance(settings, LoraSettings):
            folder = models / "smollm2"
            return [LoraTrainer(settings, folder, self.seed, site, sites, total) for site in range(sites)]
        everything = topics()
        return [
            SmallTrainer(settings, self.seed, site, [everything[place] for place in mine], everything, total)
            for site, mine in enumerate(shares(sites))
        ]


PLAIN = ("int8", "nf4", "nf4-dq", "uniform", "rotate | lloyd:3", "rotate | lloyd:2")
"""The precisions of the comparison; ``uniform`` is the even steps, the last two are 3 and 2 bits."""
CHANGES = tuple(f"delta | {codec}" for codec in PLAIN)
FED_BACK = tuple(f"delta | feedback | {codec}" for codec in PLAIN)
FED_BACK_WEIGHTS = tuple(f"feedback | {codec}" for codec in PLAIN)
EXACT = ("lossless", "same | lossless")
OTHERS = ("bf16", "fp16", "fp4", "lloyd:3", "lloyd:2", "delta | bf16", "delta | fp4")
ONE_WAY = (
    "delta | nf4 down, none up",
    "none down, delta | nf4 up",
    "delta | feedback | nf4 down, delta | nf4 up",
    "delta | rotate | lloyd:2 down, none up",
    "none down, delta | rotate | lloyd:2 up",
)
"""Which direction is it that needs the feedback?"""
SMALLEST = "delta | feedback | rotate | lloyd:2"
WITH_LORA = (
    "delta | nf4",
    "delta | feedback | nf4",
    SMALLEST,
    "int8",
    "nf4",
    "delta | int8",
    "delta | uniform",
)
WITH_LORA_4 = ("delta | feedback | nf4", "int8", "nf4")
SEEDS = (0, 1, 2)
LENGTHS = {"small-1": (12, 8), "small-4": (10, 5), "small-8": (10, 4), "lora-1": (8, 4), "lora-4": (8, 3)}
"""Rounds, and steps in each."""


def grid() -> list[Experiment]:
    """All experiments, the most telling ones first."""
    small = [
        *_central("small"),
        *_federated("small", 1, ("none", *PLAIN, *CHANGES, *FED_BACK, *EXACT, *OTHERS, *ONE_WAY)),
        *_federated("small", 4, ("none", *PLAIN, *CHANGES, *FED_BACK)),
        *_federated("small", 4, ("none",), repeat=1),
        *_federated("small", 4, FED_BACK_WEIGHTS),
        *_federated("small", 8, ("none", *PLAIN, *CHANGES, *FED_BACK)),
    ]
    lora = [*_central("lora"), *_federated("lora", 1, ("none", *WITH_LORA))]
    lora.sort(key=lambda experiment: experiment.seed)
    shared = _federated("lora", 4, ("none", *WITH_LORA_4))
    shared.sort(key=lambda experiment: experiment.seed)
    return [*small, *lora, *_federated("small", 8, FED_BACK_WEIGHTS), *shared]


def quick_grid() -> list[Experiment]:
    """A few trainings of a toy, to see that everything works: seconds, and no evidence of anything."""
    found = [Experiment("toy", 0, 3, 4, "none", 0)]
    found += [Experiment("toy", 1, 3, 4, codec, 0) for codec in ("none", "lossless", "delta | nf4")]
    found += [Experiment("toy", 2, 3, 4, codec, seed) for codec in ("none", SMALLEST) for seed in (0, 1)]
    return found


def _central(task: Task) -> list[Experiment]:
    return [Experiment(task, 0, *LENGTHS[f"{task}-1"], "none", seed) for seed in SEEDS]


def _federated(task: Task, sites: int, codecs: Sequence[str], repeat: int = 0) -> list[Experiment]:
    rounds, steps = LENGTHS[f"{task}-{sites}"]
    return [Experiment(task, sites, rounds, steps, codec, seed, repeat) for codec in codecs for seed in SEEDS]
