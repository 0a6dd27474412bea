"""What the sites of a chaos run train.

Numbers that follow from the site, the round and its model, and so come out the same in a process that is
started again.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import numpy.typing as npt

JOB = "chaos"
Arrays = dict[str, npt.NDArray[Any]]

LONG = 270_000
"""Elements of the longest tensor; in float32 a little more than fits one frame."""
PARTIAL = "s7"
"""This site sends only some of the tensors."""
IDLE = "idle"
"""No site trains this tensor, and one does not send it."""


def first_model() -> Arrays:
    """Tensors of four dtypes: of two slices, of one, and a scalar."""
    chance = np.random.default_rng(0)
    return {
        "long": chance.normal(0, 0.05, LONG).astype(np.float32),
        "half": chance.normal(0, 0.05, (40, 30)).astype(np.float16),
        "double": chance.normal(0, 1e-6, 500),
        "steps": np.array(1000),
        IDLE: chance.normal(0, 1, 77).astype(np.float32),
    }


def train(site: str, number: int, model: Arrays) -> tuple[Arrays, float]:
    """The update of ``site`` in round ``number``, and the examples that it counts for."""
    chance = np.random.default_rng([int(site[1:]), number])
    made: Arrays = {}
    for name, values in model.items():
        if name == "steps":
            made[name] = values + chance.integers(1, 100)
        elif name == IDLE:
            made[name] = values
        else:
            made[name] = (values * 0.9 + chance.normal(0, 0.01, values.shape)).astype(values.dtype)
    if site == PARTIAL:
        made = {name: made[name] for name in ("half", "long")}
    return made, float(chance.integers(1, 4000)) / 7


def delay(seed: str, site: str, number: int) -> float:
    """Seconds that ``site`` trains in round ``number``: mostly few, at times more than the deadline has."""
    chance = random.Random(f"{seed}/{site}/{number}")
    return chance.uniform(2.0, 4.0) if chance.random() < 0.12 else chance.uniform(0.0, 0.8)
