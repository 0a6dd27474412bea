"""Peak memory of the aggregator against the number of updates and the size of the model."""

# matplotlib is typed in part only.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .processes import Memory, aggregator, broker, until

MIB = 1 << 20
JOB = "bench"
PUBLISHER = Path(__file__).with_name("publisher.py")


@dataclass(frozen=True, slots=True)
class Point:
    """One round: ``peak`` is the VmHWM of the aggregator, in MiB."""

    reducer: str
    mib: int
    updates: int
    peak: float


def measure(reducer: str, mib: int, counts: Sequence[int], codec: str, scratch: Path) -> list[Point]:
    """A round of each number of updates."""
    found: list[Point] = []
    for updates in counts:
        data = scratch / "data"
        try:
            with broker(data) as (_, url):
                command = [sys.executable, str(PUBLISHER), url, codec, str(mib), str(updates)]
                subprocess.run(command, check=True)
                options = ["--sites", str(updates), "--reducer", reducer, "--up", codec, "--down", codec]
                process = aggregator(url, JOB, options)
                memory = Memory(process.pid)
                try:
                    until(process, "published", 2)
                finally:
                    memory.end()
                    process.end()
        finally:
            shutil.rmtree(data, ignore_errors=True)
        found.append(Point(reducer, mib, updates, memory.peak / MIB))
    return found


def table(points: Sequence[Point]) -> str:
    """As Markdown: a row for each reducer and model, a column for each number of updates."""
    counts = sorted({point.updates for point in points})
    lines = [f"| reducer | model MiB | {' | '.join(f'{count} updates' for count in counts)} |"]
    lines.append("|---|---:" + "|---:" * len(counts) + "|")
    for reducer, mib in dict.fromkeys((point.reducer, point.mib) for point in points):
        of = {point.updates: point.peak for point in points if (point.reducer, point.mib) == (reducer, mib)}
        cells = [f"{of[count]:.0f}" if count in of else "" for count in counts]
        lines.append(f"| {reducer} | {mib} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(points: Sequence[Point], path: Path) -> None:
    """A PNG: a line for each reducer and model."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    reducers = dict.fromkeys(point.reducer for point in points)
    styles = dict(zip(reducers, ("-", "--", ":"), strict=False))
    for reducer, mib in dict.fromkeys((point.reducer, point.mib) for point in points):
        of = [point for point in points if (point.reducer, point.mib) == (reducer, mib)]
        axes.plot(
            [point.updates for point in of],
            [point.peak for point in of],
            styles[reducer],
            marker="o",
            label=f"{reducer}, model of {mib} MiB",
        )
    counts = sorted({point.updates for point in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set(xlabel="updates in the round", ylabel="peak of the aggregator, MiB", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def to_json(points: Sequence[Point]) -> list[dict[str, object]]:
    """For a file."""
    return [asdict(point) for point in points]
