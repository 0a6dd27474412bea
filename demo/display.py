"""Views of a run while it goes on: a live table on a terminal, lines elsewhere, JSON for a program."""

from __future__ import annotations

import json
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .processes import Event
from .scoreboard import BROKER, Doing, Scoreboard

MIB = 1 << 20
SILENCE = 4.0
"""Seconds without a line after which the plain views say that they are alive."""


class View(Protocol):
    """Shows a Scoreboard."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def event(self, process: str, event: Event) -> None:
        """An event that the scoreboard has taken."""
        ...

    def tick(self) -> None:
        """Called a few times a second."""
        ...


class _Open:
    """A view that needs no opening and no closing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class JsonView(_Open):
    """Every event as one JSON object a line, with ``process`` and, in a silence, a heartbeat."""

    def __init__(self, scores: Scoreboard) -> None:
        self._scores = scores
        self._spoke = scores.elapsed

    def event(self, process: str, event: Event) -> None:
        self._spoke = self._scores.elapsed
        print(json.dumps({"process": process, **event}), flush=True)

    def tick(self) -> None:
        if self._scores.elapsed - self._spoke > SILENCE:
            doing = {process: doing.what for process, doing in self._scores.doing.items()}
            self.event("demo", {"event": "heartbeat", "seconds": self._scores.elapsed, "doing": doing})


class LineView(_Open):
    """A line for everything that a person would want to read in a log."""

    def __init__(self, scores: Scoreboard, console: Console) -> None:
        self._scores = scores
        self._console = console
        self._spoke = scores.elapsed

    def event(self, process: str, event: Event) -> None:
        sentence = sentence_of(event)
        if sentence:
            self._say(process, sentence)

    def tick(self) -> None:
        if self._scores.elapsed - self._spoke > SILENCE:
            doing = [f"{name}: {words(now)}" for name, now in self._scores.doing.items() if name != BROKER]
            self._say("…", "; ".join(doing) or "starting")

    def _say(self, process: str, sentence: str) -> None:
        self._spoke = self._scores.elapsed
        line = f"{self._scores.elapsed:6.1f} s  {process:<11}{sentence}"
        self._console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)


class LiveView:
    """One table that is always up to date, with the losses so far above it."""

    def __init__(self, scores: Scoreboard, console: Console) -> None:
        self._scores = scores
        # Refreshed by tick(), not by a thread of its own, under which the scoreboard would change.
        self._live = Live(console=console, get_renderable=self._picture, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def event(self, process: str, event: Event) -> None:
        """Nothing: the next tick shows it."""

    def tick(self) -> None:
        """Draw the table anew."""
        self._live.refresh()

    def _picture(self) -> Group:
        scores = self._scores
        begun = f"Round {scores.round} of {scores.total_rounds}" if scores.round else "Getting ready"
        title = Text(begun, style="bold")
        title.append(f"   {scores.elapsed:.0f} s   {scores.url}", style="dim")
        table = Table(box=None, pad_edge=False, expand=True)
        for name in ("process", "is", "", "loss", "received", "sent"):
            table.add_column(name, justify="left" if name in ("process", "is", "") else "right")
        for process, doing in scores.doing.items():
            table.add_row(process, words(doing), _bar(doing), *self._sums(process))
        return Group(title, *self._losses(), table)

    def _losses(self) -> list[Text]:
        """Held-out loss round by round."""
        losses = [score.held_out_loss for _, score in sorted(self._scores.rounds.items())]
        shown = " → ".join(f"{loss:.3f}" for loss in losses if loss is not None)
        return [Text(f"held-out loss  {shown}", style="green")] if shown else []

    def _sums(self, process: str) -> tuple[str, str, str]:
        """The latest loss of a site, and what it has received and sent."""
        steps = self._scores.rounds[self._scores.round].steps.get(process, []) if self._scores.round else []
        moved = [entry for entry in self._scores.moved if entry.site == process]
        if not moved:
            return "", "", ""
        down, up = (sum(entry.bytes for entry in moved if entry.direction == way) for way in ("down", "up"))
        return f"{steps[-1]:.3f}" if steps else "", f"{down / MIB:.1f} MiB", f"{up / MIB:.1f} MiB"


def _bar(doing: Doing) -> ProgressBar | Text:
    if doing.steps:
        return ProgressBar(total=doing.steps, completed=doing.step, width=20)
    if doing.total:
        return ProgressBar(total=doing.total, completed=doing.moved, width=20)
    return Text()


def words(doing: Doing) -> str:
    """What a process is at, with how far it is."""
    if doing.steps:
        return f"{doing.what}, step {doing.step} of {doing.steps}"
    if doing.total:
        rate = f", {doing.rate / MIB:.0f} MiB/s" if doing.rate else ""
        return f"{doing.what}: {doing.moved / MIB:.1f} of {doing.total / MIB:.1f} MiB{rate}"
    return doing.what


def sentence_of(event: Event) -> str:
    """An event in words; empty for what is not worth a line."""
    match event.get("event"):
        case "ready":
            return f"is ready at {event['url']}"
        case "share":
            return f"trains on {event['dialogues']} dialogues"
        case "round":
            return f"round {event['round']} of {event['rounds']} begins"
        case "step":
            return f"round {event['round']}, step {event['step']}/{event['steps']}: loss {event['loss']:.3f}"
        case "evaluated":
            return f"global model {event['round']}: held-out loss {event['loss']:.3f}"
        case "transferred":
            what = "received the global model" if event["direction"] == "down" else "sent its update"
            return f"{what}: {_moved(event)}"
        case "folded":
            return f"folded the update of site {event['site']}, {event['updates']} of {event['expected']}"
        case "published":
            return f"sealed global model {event['round']}{', the final one' if event['final'] else ''}"
        case "refused":
            return f"refused the update of site {event['site']}: {event['reason']}"
        case "interrupted":
            return f"interrupted: {event['reason']}"
        case _:
            return ""


def _moved(event: Event) -> str:
    size, original, seconds = event["bytes"], event["original_bytes"], event["seconds"]
    if not (isinstance(size, int) and isinstance(original, int) and isinstance(seconds, float) and original):
        return "nothing"
    rate = size / MIB / max(seconds, 1e-9)
    share = f"{100 * size / original:.2f} % of fp32"
    return f"{size / MIB:.1f} MiB ({share}) in {seconds:.1f} s, {rate:.0f} MiB/s"
