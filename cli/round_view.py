"""What `tensorbus aggregate` shows: events as JSON lines for a program, sentences and bars for a person."""

from __future__ import annotations

import time
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self

import click

from tensorbus.bus.client import Progress

from .output import print_json, share, size
from .transfer_bar import TransferBar

if TYPE_CHECKING:
    from tensorbus.aggregator.events import Event, Value

PROGRESS = ("folding", "publishing", "relaying", "submitting")
"""Events that come once a slice."""
EVERY = 0.5
"""Seconds between two of them in JSON."""


class RoundLines:
    """Every event as a line of JSON on stdout; of a transfer's progress, the first and two a second."""

    def __init__(self) -> None:
        self._told = ("", 0.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def __call__(self, event: Event) -> None:
        name, at = self._told
        if event.name in PROGRESS and event.name == name and time.monotonic() - at < EVERY:
            return
        self._told = (event.name, time.monotonic())
        print_json(event.to_json())


class RoundView:
    """A line for each step of a round on stdout, and a bar on stderr while something moves."""

    def __init__(self, job: str) -> None:
        self._job = job
        self._bar = ExitStack()
        self._moving: TransferBar | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def __call__(self, event: Event) -> None:
        if event.name in PROGRESS:
            self._move(event)
            return
        self._bar.close()
        self._moving = None
        if sentence := _sentence(event.name, event.fields):
            click.echo(f"{event.time.astimezone():%H:%M:%S}  {self._job}  {sentence}")

    def _move(self, event: Event) -> None:
        if self._moving is None:
            what = {
                "publishing": "publishing the model",
                "relaying": "downloading the model",
                "submitting": "sending the sums",
            }.get(event.name) or f"folding {event.fields['site']}"
            self._moving = self._bar.enter_context(TransferBar(what))
        moved, total = event.fields["bytes"], event.fields["total_bytes"]
        if isinstance(moved, int):
            self._moving(Progress(moved, total if isinstance(total, int) else None, 0, None, None))


def _sentence(name: str, told: dict[str, Value]) -> str:
    """An event in words."""
    match name:
        case "waiting":
            return f"no model yet: waiting for one on topic {told['topic']}"
        case "resumed":
            return f"found the model of round {told['round']}"
        case "round":
            what = "updates" if told["mode"] == "buffered" else "sites"
            return (
                f"round {told['round']} of {told['rounds']}: waiting for {told['expected']} {what}"
                f" ({told['quorum']} are enough after {told['deadline']} s)"
            )
        case "paused":
            return f"  ‖ paused: round {told['round']} does not close until the job is resumed"
        case "continued":
            return f"  ▸ round {told['round']} goes on"
        case "declined":
            why = f": {told['reason']}" if told["reason"] else ""
            return f"  - {told['site']} {'leaves' if told['leaves'] else 'sits this round out'}{why}"
        case "folded":
            counted = f"{told['updates']} of {told['expected']} in"
            late = f", {told['behind']} rounds late" if told["behind"] else ""
            examples = f"{told['num_examples']} examples{late}"
            return f"  + {told['site']}: {examples}{_metrics(told['metrics'])}; {counted}"
        case "ignored":
            return f"  · an update of {told['site']} for round {told['round']} is {told['why']}: not counted"
        case "refused":
            return f"  ✗ the update of {told['site']} is refused: {told['reason']}"
        case "refolding":
            return "  ↺ folding the other updates again"
        case "overdue":
            return f"  ! the deadline has passed without a quorum: {told['reason']}"
        case "closing":
            metrics = _metrics(told["metrics"])
            return f"round {told['round']} is complete: {told['num_examples']:g} examples{metrics}"
        case "published":
            wire, original = told["bytes_on_wire"], told["bytes_original"]
            moved = ""
            if isinstance(wire, int) and isinstance(original, int):
                moved = f": {size(original)} as {size(wire)} ({share(wire, original)})"
            return f"model {told['round']}{' (the final one)' if told['final'] else ''} is sealed{moved}"
        case "submitted":
            what = "sums" if told["exact"] else "mean"
            return f"the {what} went to {told['parent']}: its next model is waited for"
        case "overtaken":
            return f"  ! round {told['round']} of {told['parent']} is over already: what came here is lost"
        case "reopened":
            return f"  ↺ round {told['round']} is open again: it cannot be made of these updates"
        case "interrupted":
            return f"  ! {told['reason']}; trying again"
        case "cancelled":
            return f"cancelled: {told['reason']}"
        case "done":
            return f"done: the final model is message {told['message']}"
        case _:
            return ""


def _metrics(metrics: Value) -> str:
    if not isinstance(metrics, dict):
        return ""
    return "".join(f", {name} {value:.4g}" for name, value in metrics.items())
