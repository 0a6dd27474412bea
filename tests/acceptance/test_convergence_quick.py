"""The convergence runs, in their quick form, as a user starts them: killed, continued, and drawn."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest

NEEDED = ("torch", "transformers", "matplotlib", "chatterbot_corpus", "yaml")
pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED), reason="the [demo] extra is not installed"
)

PROGRAM = Path(__file__).parents[2] / "bench" / "convergence.py"
SMALLEST = "delta | feedback | rotate | lloyd:2"
Entry = Mapping[str, object]


class Runs:
    """A quick run that was killed after its first training, the one that went on, and one that draws."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._environment = {**os.environ, "TMPDIR": str(folder)}
        with subprocess.Popen(
            self._command(), env=self._environment, stdout=subprocess.PIPE, text=True
        ) as run:
            assert run.stdout is not None
            for line in run.stdout:
                if line.startswith("[1/"):
                    break
            run.kill()
        self.before = self.times()
        self.second = self._run()
        self.after = self.times()
        self.drawn = self._run("--plot")
        written = cast("dict[str, Entry]", json.loads((folder / "data.json").read_text(encoding="utf-8")))
        self.entries = list(written.values())

    def times(self) -> dict[str, int]:
        """When each training's file was written."""
        return {path.name: path.stat().st_mtime_ns for path in self.folder.glob("results/*.json")}

    def of(self, codec: str, sites: int, seed: int = 0) -> Entry:
        """What came of one training."""
        wanted = {"codec": codec, "sites": sites, "seed": seed}
        found = [
            entry for entry in self.entries if wanted.items() <= cast(Entry, entry["experiment"]).items()
        ]
        assert len(found) == 1
        return found[0]

    def _run(self, *options: str) -> str:
        done = subprocess.run(
            self._command(*options), env=self._environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _command(self, *options: str) -> list[str]:
        places = {"--output": "results", "--data": "data.json", "--pictures": "pictures"}
        named = [part for name, place in places.items() for part in (name, str(self.folder / place))]
        return [sys.executable, str(PROGRAM), "--quick", *named, *options]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Of all tests here: they take a while."""
    return Runs(tmp_path_factory.mktemp("convergence"))


def test_a_killed_run_goes_on_where_it_was(runs: Runs) -> None:
    """What was done before the kill is neither lost nor done again, and in the end everything is there."""
    assert 1 <= len(runs.before) < 8
    assert f"8 trainings, {8 - len(runs.before)} to do" in runs.second
    assert len(runs.after) == 8
    assert runs.before.items() <= runs.after.items()
    assert "8 trainings, 0 to do" in runs.drawn


def test_losses_fall_with_and_without_the_bus(runs: Runs) -> None:
    """Every training learns: the held-out loss falls by half a nat at least."""
    assert len(runs.entries) == 8
    for entry in runs.entries:
        held_out = cast("list[float]", entry["held_out"])
        assert len(held_out) == 4
        assert held_out[0] - held_out[-1] > 0.5
        assert held_out[1] < held_out[0]


def test_exact_codecs_give_the_centrally_trained_model_bit_for_bit(runs: Runs) -> None:
    """With one site, the bus takes nothing from a training, and a lossy codec does change the model."""
    central = runs.of("none", sites=0)["digest"]
    assert runs.of("none", sites=1)["digest"] == central
    assert runs.of("lossless", sites=1)["digest"] == central
    assert runs.of("delta | nf4", sites=1)["digest"] != central


def test_bytes_are_those_of_the_codec_both_ways(runs: Runs) -> None:
    """As fp32 every site loads the model once more than it sends one; 2 bits are a fraction of that."""
    full, smallest = runs.of("none", sites=2), runs.of(SMALLEST, sites=2)
    parameters = cast(int, full["parameters"])
    assert 2 * parameters * 4 * 3 <= cast(int, full["up"]) < 1.1 * 2 * parameters * 4 * 3
    assert 2 * parameters * 4 * 4 <= cast(int, full["down"]) < 1.1 * 2 * parameters * 4 * 4
    assert cast(int, smallest["up"]) < 0.2 * cast(int, full["up"])
    assert cast(int, smallest["down"]) < 0.2 * cast(int, full["down"])


def test_tables_and_pictures_are_made_of_the_results(runs: Runs) -> None:
    """A table a group, with every codec in it, and a picture of the curves and one of the bytes."""
    assert "### One site, a toy" in runs.drawn
    assert "| `lossless` |" in runs.drawn
    assert "0, bit for bit" in runs.drawn
    assert "over 2 seeds" in runs.drawn
    for name in ("convergence-toy.png", "convergence-bytes.png"):
        assert (runs.folder / "pictures" / name).read_bytes().startswith(b"\x89PNG")


def test_the_page_shows_the_results_that_lie_beside_it(tmp_path: Path) -> None:
    """Each line of the tables in docs/convergence.md is what the program makes of the stored results."""
    root = PROGRAM.parents[1]
    data = tmp_path / "data.json"
    shutil.copy(root / "bench" / "results" / "convergence.json", data)
    places = {"--output": tmp_path / "nothing", "--data": data, "--pictures": tmp_path}
    options = [part for name, place in places.items() for part in (name, str(place))]
    made = subprocess.run(
        [sys.executable, str(PROGRAM), "--plot", *options], capture_output=True, text=True, check=True
    ).stdout
    page = (root / "docs" / "convergence.md").read_text(encoding="utf-8").splitlines()
    lines = [line for line in made.splitlines() if line.startswith(("| ", "Full precision: "))]
    assert len(lines) > 60
    assert [line for line in lines if line not in page] == []
