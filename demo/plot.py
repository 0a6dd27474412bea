"""The loss curves of one run, or of several in one picture.

python -m tensorbus.demo.plot none/report.json nf4/report.json -o loss.png
"""

# matplotlib is typed in part only.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Report = Mapping[str, object]
STYLES = ("-", "--", ":", "-.")
"""Curves that lie on each other can still be told apart."""


def label(report: Report) -> str:
    """The codecs of a run: ``delta | nf4``, or ``nf4 down, int8 up``."""
    settings = cast("Mapping[str, object]", report["settings"])
    down, up = str(settings["down"]), str(settings["up"])
    return down if down == up else f"{down} down, {up} up"


def plot(reports: Sequence[Report], path: Path) -> None:
    """Write a PNG: training loss by step on the left, held-out loss by round on the right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    training, held_out = cast("Sequence[Axes]", figure.subplots(1, 2))
    for place, report in enumerate(reports):
        style = STYLES[place % len(STYLES)]
        steps = step_losses(report)
        training.plot(range(1, len(steps) + 1), steps, style, label=label(report))
        losses = held_out_losses(report)
        held_out.plot(range(len(losses)), losses, style, marker="o", markersize=4, label=label(report))
    training.set(title="Training", xlabel="step, mean over the sites", ylabel="loss")
    held_out.set(title="Held-out text", xlabel="rounds done", ylabel="loss of the global model")
    held_out.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (training, held_out):
        axes.grid(alpha=0.3)
        axes.legend(title="codec")
    figure.savefig(path, dpi=120)


def step_losses(report: Report) -> list[float]:
    """Loss of every training step of the run, mean over the sites."""
    found: list[float] = []
    for entry in cast("Sequence[Mapping[str, object]]", report["rounds"]):
        sites = list(cast("Mapping[str, list[float]]", entry["steps"]).values())
        found.extend(sum(losses) / len(losses) for losses in zip(*sites, strict=False))
    return found


def held_out_losses(report: Report) -> list[float]:
    """Loss of the global model before the first round and after each."""
    rounds = cast("Sequence[Mapping[str, object]]", report["rounds"])
    losses = [*(entry["held_out_loss"] for entry in rounds), report["final_held_out_loss"]]
    return [cast(float, loss) for loss in losses if loss is not None]


@click.command()
@click.argument("reports", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The PNG.")
def main(reports: tuple[Path, ...], output: Path) -> None:
    """Draw the loss curves of REPORTS, the report.json files of runs of the demo, into one picture."""
    plot([cast(Report, json.loads(path.read_text(encoding="utf-8"))) for path in reports], output)


if __name__ == "__main__":
    main()
