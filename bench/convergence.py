"""Does anything that quantised messages leave out show in the loss? Trainings with every codec, side by side.

    python bench/convergence.py                     # whatever is not done yet; an hour and a half of one core
    python bench/convergence.py --only small-4      # one group: small-1, small-4, small-8, lora-1, lora-4
    python bench/convergence.py --only 'small-8 .* seed=0'
    python bench/convergence.py --plot              # tables and pictures of what is done, nothing is trained
    python bench/convergence.py --quick             # a toy, in seconds

Each training that is done is a file in ``bench-output/convergence``; what is there is not done again, so that
a run that was killed goes on where it was. Several processes may share the work with different ``--only``.
``--plot`` puts what is done into ``bench/results/convergence.json``, beside what is there, and shows that.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from trainings.experiment import Experiment, grid, quick_grid
from trainings.pictures import draw
from trainings.results import ResultFolder, read_compact, write_compact
from trainings.tables import tables

ROOT = Path(__file__).parent.parent


def main() -> int:
    """Train what is missing, or show what is there."""
    parser = argparse.ArgumentParser(description="Convergence under every codec")
    parser.add_argument("--only", default="", help="a pattern; trainings whose title has it")
    parser.add_argument("--quick", action="store_true", help="a toy, to see that everything works")
    parser.add_argument("--list", action="store_true", help="say what there is to do, and do nothing")
    parser.add_argument("--plot", action="store_true", help="tables and pictures of what is done")
    parser.add_argument("--output", type=Path, default=ROOT / "bench-output" / "convergence")
    parser.add_argument("--data", type=Path, default=ROOT / "bench" / "results" / "convergence.json")
    parser.add_argument("--pictures", type=Path, default=ROOT / "docs" / "images")
    options = parser.parse_args()
    experiments = [
        experiment
        for experiment in (quick_grid() if options.quick else grid())
        if re.search(options.only, str(experiment))
    ]
    folder = ResultFolder(options.output)
    missing = [experiment for experiment in experiments if not folder.has(experiment.key)]
    print(f"{len(experiments)} trainings, {len(missing)} to do", flush=True)
    if options.list:
        for experiment in missing:
            print(experiment.key, experiment)
        return 0
    if options.plot:
        show(experiments, folder, options.data, options.pictures)
    else:
        train(missing, folder, options.output / "models")
    return 0


def train(missing: Sequence[Experiment], folder: ResultFolder, models: Path) -> None:
    """One after the other, with one thread; each is kept as soon as it is done."""
    import torch
    from trainings.federation import run

    torch.set_num_threads(1)
    for place, experiment in enumerate(missing, start=1):
        if folder.has(experiment.key):
            continue  # another process was quicker
        result = run(experiment, models)
        folder.put(experiment.key, result)
        print(
            f"[{place}/{len(missing)}] {experiment}: {result.held_out[0]:.4f} -> {result.final:.4f}, "
            f"{result.bytes / 1e6:.2f} MB, {result.cpu_seconds:.1f} s",
            flush=True,
        )


def show(experiments: Sequence[Experiment], folder: ResultFolder, data: Path, pictures: Path) -> None:
    """Tables to stdout, pictures and the compact file; results of this machine come before stored ones."""
    keys = [experiment.key for experiment in experiments]
    found = {**read_compact(data), **folder.read(keys)}
    known = {key: found[key] for key in keys if key in found}
    write_compact(known, data)
    results = list(read_compact(data).values())
    print(tables(results))
    for path in draw(results, pictures):
        print(path)


if __name__ == "__main__":
    sys.exit(main())
