"""DemoSettings: what a run of the demo is told."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path

MAX_SITES = 8
JOB = "demo"


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """One run.

    Attributes:
        down, up: codecs of the global models and of the updates, as on the command line.
        keep: name patterns of tensors that are sent exactly.
        sites: how many take part; they are called a, b, ….
        rounds, steps: rounds of the job, and training steps in each of them.
        seed: decides the order of the text at each site.
        tiny: a toy of random weights instead of SmolLM2.
        port: of the broker; 0 for any that is free.
        output: folder for the report, the plot and the logs.
        keep_data: leave the model folder and the broker's messages there too.
    """

    down: str
    up: str
    keep: tuple[str, ...]
    sites: int
    rounds: int
    steps: int
    seed: int
    tiny: bool
    port: int
    output: Path
    keep_data: bool

    @property
    def site_names(self) -> list[str]:
        """In the order of their shares of the text."""
        return [chr(ord("a") + place) for place in range(self.sites)]

    @property
    def threads(self) -> int:
        """Threads for each site to compute with: the cores are shared out evenly."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, cores // self.sites)

    def to_json(self) -> dict[str, object]:
        """For the report; no paths, since it may be shown to others."""
        private = ("output", "port", "keep_data")
        return {name: value for name, value in asdict(self).items() if name not in private}
