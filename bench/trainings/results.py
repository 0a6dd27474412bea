"""Results: one JSON file for each training that is done, and all of them in one compact file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one training.

    Attributes:
        experiment: as ``Experiment.to_json`` has it.
        held_out: loss of the global model before the first round and after each, nats a token.
        final: that of the last model, over more of the held-out text.
        training: loss of each step, mean over the sites; out of the compact file, of each round.
        down, up: bytes that all sites loaded and sent in all rounds; 0 for central training.
        parameters: numbers that travel.
        digest: SHA-256 of the last model's values; out of the compact file, its beginning.
        cpu_seconds: of the whole process.
    """

    experiment: dict[str, object]
    held_out: list[float]
    final: float
    training: list[float]
    down: int
    up: int
    parameters: int
    digest: str
    cpu_seconds: float

    @property
    def sites(self) -> int:
        """0 is central training."""
        return cast(int, self.experiment["sites"])

    @property
    def group(self) -> str:
        """What is compared with each other: ``small-4``; central training goes with the one site."""
        return f"{self.experiment['task']}-{max(1, self.sites)}"

    @property
    def label(self) -> str:
        """The codec, or ``central``."""
        return str(self.experiment["codec"]) if self.sites else "central"

    @property
    def seed(self) -> int:
        """Of the experiment."""
        return cast(int, self.experiment["seed"])

    @property
    def repeat(self) -> int:
        """0, but for a training that was done again to see whether the same comes of it."""
        return cast(int, self.experiment["repeat"])

    @property
    def bytes(self) -> int:
        """Both ways."""
        return self.down + self.up

    def compact(self) -> Result:
        """With the mean training loss of each round, fewer digits, and without what the code says."""
        rounds = cast(int, self.experiment["rounds"])
        steps = len(self.training) // rounds
        training = [sum(self.training[n * steps : (n + 1) * steps]) / steps for n in range(rounds)]
        return Result(
            experiment={name: value for name, value in self.experiment.items() if name != "settings"},
            held_out=[round(loss, 5) for loss in self.held_out],
            final=round(self.final, 8),
            training=[round(loss, 5) for loss in training],
            down=self.down,
            up=self.up,
            parameters=self.parameters,
            digest=self.digest[:16],
            cpu_seconds=round(self.cpu_seconds, 1),
        )


class ResultFolder:
    """Finished trainings, ``KEY.json`` each; a file is there wholly or not at all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has(self, key: str) -> bool:
        """Whether this training is done."""
        return self._path(key).is_file()

    def put(self, key: str, result: Result) -> None:
        """Keep the result."""
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = self._path(key).with_suffix(".partial")
        partial.write_text(json.dumps(asdict(result)), encoding="utf-8")
        partial.replace(self._path(key))

    def read(self, keys: Iterable[str]) -> dict[str, Result]:
        """Those of ``keys`` that are done."""
        return {key: self._read(key) for key in keys if self.has(key)}

    def _read(self, key: str) -> Result:
        return Result(**json.loads(self._path(key).read_text(encoding="utf-8")))

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.json"


def write_compact(results: Mapping[str, Result], path: Path) -> None:
    """All results by their keys in one file, a line each."""
    lines = [f'"{key}": {json.dumps(asdict(result.compact()))}' for key, result in results.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def read_compact(path: Path) -> dict[str, Result]:
    """What `write_compact` wrote; nothing where there is no such file."""
    if not path.is_file():
        return {}
    entries = cast("dict[str, dict[str, object]]", json.loads(path.read_text(encoding="utf-8")))
    return {key: Result(**entry) for key, entry in entries.items()}  # pyright: ignore[reportArgumentType]
