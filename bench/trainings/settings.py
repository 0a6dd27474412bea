"""Settings of the trainings: models, and how they are trained. Nothing in here depends on a codec."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model is trained; the same for every codec.

    Attributes:
        rate: the highest learning rate; it rises in a straight line over ``warmup`` steps, and falls in one
            to a tenth over the whole training.
        batch: examples a step.
    """

    rate: float
    warmup: int
    batch: int


@dataclass(frozen=True, slots=True)
class SmallSettings:
    """The model and how it is trained; 0.54 million parameters as it stands.

    Attributes:
        spread: standard deviation of the weights to begin with.
        window: bytes of an example.
        held_out: windows of each topic that are evaluated every round, and ``final`` after the last.
    """

    hidden: int = 128
    intermediate: int = 512
    layers: int = 2
    heads: int = 4
    spread: float = 0.06
    window: int = 64
    held_out: int = 8
    final: int = 64
    recipe: Recipe = field(default_factory=lambda: Recipe(rate=4e-3, warmup=6, batch=8))


TOY = SmallSettings(hidden=32, intermediate=64, layers=1, held_out=2, final=4)
"""For ``--quick``."""


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """The adapters and how they are trained; 460,800 parameters as it stands.

    Attributes:
        tokens: of one dialogue; the rest is cut off.
        held_out: dialogues that are evaluated every round, and ``final`` after the last.
    """

    rank: int = 8
    scale: float = 2.0
    tokens: int = 40
    held_out: int = 16
    final: int = 64
    recipe: Recipe = field(default_factory=lambda: Recipe(rate=2e-3, warmup=4, batch=4))
