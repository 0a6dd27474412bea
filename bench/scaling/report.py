"""Rounds that were simulated: as a table, as a picture, as JSON."""

# matplotlib is typed in part only.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from .settings import RESOURCES, Settings
from .tree import Federation, Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True)
class Row:
    """One round, and the seconds that each limit costs it."""

    tree: str
    codec: str
    outcome: Outcome
    costs: dict[str, float]

    @property
    def bottleneck(self) -> str:
        """The resource that costs most."""
        return max((name for name in self.costs if name != "stragglers"), key=self.costs.__getitem__)


def simulated(federation: Federation, settings: Settings) -> Row:
    """One round, and once more without each limit."""
    outcome = federation.round(settings)
    costs = {name: outcome.seconds - federation.round(settings.without(name)).seconds for name in RESOURCES}
    return Row(" × ".join(map(str, settings.fans)), settings.service.codec, outcome, costs)


def write(rows: Sequence[Row], path: Path) -> None:
    """As JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> list[Row]:
    """What ``write`` wrote."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return [Row(row["tree"], row["codec"], Outcome(**row["outcome"]), row["costs"]) for row in found]


def table(rows: Sequence[Row]) -> str:
    """As Markdown."""
    lines = [
        "| tree | codec | minutes a round | held up most by | root GB | node GB | node's disk GB"
        " | all sites TB | aggregators CPU h |",
        "|---|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        worst, outcome = row.bottleneck, row.outcome
        cells = (
            row.tree,
            f"`{row.codec}`".replace("|", "\\|"),
            f"{outcome.seconds / 60:.1f}",
            f"{worst} ({row.costs[worst] / 60:.1f} min)",
            f"{outcome.root_gb:,.0f}",
            f"{outcome.node_gb:,.0f}",
            f"{outcome.disk_gb:,.0f}",
            f"{outcome.wide_area_tb:,.1f}",
            f"{outcome.cpu_hours:,.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(rows: Sequence[Row], path: Path) -> None:
    """A PNG: the minutes of each round above, what each limit costs of them below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8.5), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = cast("Sequence[Axes]", figure.subplots(2, 1))
    trees, codecs = (
        list(dict.fromkeys(row.tree for row in rows)),
        list(dict.fromkeys(row.codec for row in rows)),
    )
    minutes = {codec: [row.outcome.seconds / 60 for row in rows if row.codec == codec] for codec in codecs}
    _bars(above, trees, minutes)
    above.set(ylabel="minutes a round", yscale="log", title="A round, by tree and codec")
    shown = [row for row in rows if row.codec in (codecs[0], codecs[-1])]
    labels = [f"{row.tree}\n{row.codec}" for row in shown]
    _bars(
        below,
        labels,
        {name: [100 * row.costs[name] / row.outcome.seconds for row in shown] for name in RESOURCES},
    )
    below.set(ylabel="% of the round", title="What would be gained without one limit")
    below.tick_params(axis="x", labelsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _bars(axes: Axes, labels: Sequence[str], series: dict[str, list[float]]) -> None:
    width = 0.8 / len(series)
    for place, (name, values) in enumerate(series.items()):
        axes.bar([at + place * width for at in range(len(values))], values, width, label=name)
    axes.set_xticks([at + 0.4 - width / 2 for at in range(len(labels))], labels)
    axes.grid(alpha=0.3, axis="y")
    axes.legend(ncols=4, fontsize=8)
