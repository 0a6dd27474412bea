"""The results as pictures: loss curves with seed bands, and the final loss against the bytes."""

# matplotlib is typed in part only.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from trainings.comparison import REFERENCE, Row, compare
from trainings.experiment import SMALLEST
from trainings.results import Result
from trainings.tables import TITLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES = {REFERENCE: "full precision", "central": "central, no bus"}
CURVES = {
    "small-1": ("central", REFERENCE, "int8", "nf4", "delta | nf4", SMALLEST),
    "small-4": (REFERENCE, "nf4", "delta | nf4", "delta | rotate | lloyd:2", SMALLEST),
    "small-8": (REFERENCE, "nf4", "delta | nf4", "delta | rotate | lloyd:2", SMALLEST),
    "lora-1": ("central", REFERENCE, "nf4", "delta | nf4", SMALLEST),
    "lora-4": (REFERENCE, "int8", "nf4", "delta | feedback | nf4"),
    "toy-1": ("central", REFERENCE, "delta | nf4"),
    "toy-2": (REFERENCE, SMALLEST),
}
"""What is drawn as curves; all codecs would hide each other."""
STYLES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 1)))
"""Curves that lie on each other can still be told apart."""
LINEAR = 0.02
"""Differences up to so much are drawn to scale, larger ones by their logarithm."""
TOP = 8.0
"""What is worse by more is not drawn: it has learnt nothing."""
WAYS: tuple[tuple[str, str, Callable[[str], bool]], ...] = (
    ("weights", "s", lambda label: "delta" not in label and "feedback" not in label),
    ("weights with feedback", "D", lambda label: "delta" not in label and "feedback" in label),
    ("changes", "o", lambda label: "delta" in label and "feedback" not in label),
    ("changes with feedback", "^", lambda label: "delta" in label and "feedback" in label),
)
"""The four ways to send, each with its mark."""


def draw(results: Sequence[Result], folder: Path) -> list[Path]:
    """Write a PNG of loss curves for each task, and one of final losses against bytes; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    groups = [group for group in TITLES if compare(results, group)]
    written: list[Path] = []
    for task in dict.fromkeys(group.split("-")[0] for group in groups):
        path = folder / f"convergence-{task}.png"
        _curves(results, [group for group in groups if group.startswith(f"{task}-")], path)
        written.append(path)
    if groups:
        written.append(folder / "convergence-bytes.png")
        _bytes(results, groups, written[-1])
    return written


def _curves(results: Sequence[Result], groups: Sequence[str], path: Path) -> None:
    """A panel for each group: held-out loss by round, a line for the mean and a band from least to most."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(5.2 * len(groups), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = cast("Sequence[Axes]", figure.subplots(1, len(groups), squeeze=False)[0])
    for panel, group in zip(panels, groups, strict=True):
        mine = [result for result in results if result.group == group and not result.repeat]
        for place, label in enumerate(CURVES[group]):
            curves = [result.held_out for result in mine if result.label == label]
            if not curves:
                continue
            by_round = list(zip(*curves, strict=True))
            rounds = range(len(by_round))
            mean = [sum(losses) / len(losses) for losses in by_round]
            panel.plot(rounds, mean, linestyle=STYLES[place % len(STYLES)], label=NAMES.get(label, label))
            panel.fill_between(
                rounds, [min(losses) for losses in by_round], [max(losses) for losses in by_round], alpha=0.2
            )
        panel.set(title=TITLES[group], xlabel="rounds done", ylabel="held-out loss of the global model")
        panel.set_ylim(top=1.05 * max(result.held_out[1] for result in mine if result.label == REFERENCE))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def _bytes(results: Sequence[Result], groups: Sequence[str], path: Path) -> None:
    """A panel for each group: what a codec costs and saves; the band is the seeds of full precision."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = min(2, len(groups))
    height = -(-len(groups) // width)
    figure = Figure(figsize=(5.6 * width, 4.2 * height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = [panel for line in figure.subplots(height, width, squeeze=False) for panel in line]
    for panel, group in zip(cast("Sequence[Axes]", panels), groups, strict=False):
        rows = [row for row in compare(results, group) if row.bytes and " down, " not in row.label]
        full = next(row for row in rows if row.label == REFERENCE)
        low, high = min(full.losses) - full.mean, max(full.losses) - full.mean
        panel.axhspan(low, high, alpha=0.15, label="seeds of full precision")
        for place, (name, mark, chosen) in enumerate(WAYS):
            _points(panel, [row for row in rows if chosen(row.label)], name, mark, f"C{place}")
        panel.set(
            title=TITLES[group],
            xlabel="bytes both ways, % of full precision",
            ylabel="final loss − full precision's",
            xscale="log",
        )
        panel.set_yscale("symlog", linthresh=LINEAR)
        panel.set_ylim(min(2 * low, -LINEAR), min(TOP, 2 * max(row.difference for row in rows) + LINEAR))
        panel.set_xlim(5, 190)
        panel.set_xticks([5, 10, 20, 50, 100], ["5", "10", "20", "50", "100"])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    for panel in panels[len(groups) :]:
        panel.remove()
    figure.savefig(path, dpi=120)


def _points(panel: Axes, rows: Sequence[Row], name: str, mark: str, color: str) -> None:
    """The mean paired difference of each codec, with its range over the seeds."""
    if not rows:
        return
    differences = [row.difference for row in rows]
    below = [row.difference - min(row.differences) for row in rows]
    above = [max(row.differences) - row.difference for row in rows]
    panel.errorbar(
        [100 * row.part for row in rows],
        differences,
        yerr=[below, above],
        fmt=mark,
        color=color,
        markersize=5,
        elinewidth=1,
        label=name,
    )
    for row in rows:
        if row.difference < TOP:
            panel.annotate(
                NAMES.get(row.label, _quantizer(row.label)),
                (100 * row.part, row.difference),
                xytext=(2, 4),
                textcoords="offset points",
                fontsize=6,
                color=color,
                rotation=40,
                annotation_clip=True,
            )


def _quantizer(label: str) -> str:
    """What is left to tell when the mark has said the rest."""
    return label.replace("delta | ", "").replace("feedback | ", "").replace(" | ", " ")
