"""Report: the result of a run, as ``report.json`` and as tables."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tensorbus import __version__

from .scoreboard import AGGREGATOR, BROKER, PHASES, Moved, Scoreboard
from .settings import DemoSettings

MIB = 1 << 20
DIRECTIONS = {"down": "global model ↓", "up": "update ↑"}


def make_report(settings: DemoSettings, scores: Scoreboard) -> dict[str, object]:
    """Everything that was measured, as a JSON document; sizes in bytes, times in seconds."""
    last = settings.rounds + 1
    return {
        "tensorbus": __version__,
        "python": platform.python_version(),
        "settings": settings.to_json(),
        "threads_per_site": settings.threads,
        "seconds": scores.elapsed,
        "rounds": [
            {
                "round": number,
                "held_out_loss": scores.rounds[number].held_out_loss,
                "train_loss": scores.rounds[number].train_loss,
                "steps": dict(scores.rounds[number].steps),
                "seconds": scores.rounds[number].seconds,
            }
            for number in range(1, last)
        ],
        "final_held_out_loss": scores.rounds[last].held_out_loss,
        "messages": [asdict(moved) for moved in scores.moved],
        "peak_growth": scores.growth,
        "phases": {process: dict(phases) for process, phases in scores.seconds.items()},
        "topics": scores.topics,
        "digests": scores.digests,
    }


def write_report(report: dict[str, object], path: Path) -> None:
    """Write it as a file that people can read too."""
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def print_tables(console: Console, settings: DemoSettings, scores: Scoreboard) -> None:
    """The four tables at the end of a run."""
    for table in (_messages(scores), _losses(settings, scores), _memory(scores), _phases(scores)):
        console.print()
        console.print(table)


def _table(title: str, *columns: str) -> Table:
    """The first column holds words, the others numbers."""
    table = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place == 0 else "right")
    return table


def _messages(scores: Scoreboard) -> Table:
    table = _table("Messages, in MiB", "message", "number", "size", "as fp32", "share", "in all", "a second")
    for direction, words in DIRECTIONS.items():
        moved = [entry for entry in scores.moved if entry.direction == direction and entry.bytes]
        if moved:
            table.add_row(words, *_sizes(moved))
    return table


def _sizes(moved: Sequence[Moved]) -> tuple[str, ...]:
    wire, original = sum(entry.bytes for entry in moved), sum(entry.original_bytes for entry in moved)
    seconds = sum(entry.seconds for entry in moved)
    return (
        str(len(moved)),
        f"{wire / len(moved) / MIB:.2f}",
        f"{original / len(moved) / MIB:.2f}",
        f"{100 * wire / original:.2f} %",
        f"{wire / MIB:.1f}",
        f"{wire / MIB / max(seconds, 1e-9):.0f}",
    )


def _losses(settings: DemoSettings, scores: Scoreboard) -> Table:
    table = _table("Loss", "round", "held-out, at its begin", "training, mean", "seconds")
    for number in range(1, settings.rounds + 1):
        score = scores.rounds[number]
        losses = _loss(score.held_out_loss), _loss(score.train_loss)
        table.add_row(str(number), *losses, f"{score.seconds:.1f}")
    table.add_row("final model", _loss(scores.rounds[settings.rounds + 1].held_out_loss), "", "")
    return table


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _memory(scores: Scoreboard) -> Table:
    table = _table("Peak memory while messages move", "process", "MiB", "beyond")
    beyonds = {BROKER: "nothing: all of its memory", AGGREGATOR: "its accumulator"}
    for process, growth in scores.growth.items():
        beyond = beyonds.get(process, "its model")
        table.add_row(process, "not known here" if growth is None else f"{growth / MIB:.1f}", beyond)
    return table


def _phases(scores: Scoreboard) -> Table:
    processes = sorted(scores.seconds)
    phases = [*PHASES, "fold", "publish"]
    table = _table("Seconds by phase", "phase", *processes)
    for phase in phases:
        row = [scores.seconds[process].get(phase) for process in processes]
        if any(seconds is not None for seconds in row):
            table.add_row(phase, *("" if seconds is None else f"{seconds:.1f}" for seconds in row))
    return table
