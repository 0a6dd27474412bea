"""Scoreboard: all that is known of a run, made of the events of its processes. It does no I/O."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from .processes import Event

AGGREGATOR = "aggregator"
BROKER = "broker"
PHASES = {
    "load": "loading the model's architecture and the text",
    "wait": "waiting for the next global model",
    "download": "receiving the global model",
    "evaluate": "evaluating the global model",
    "train": "training",
    "upload": "sending its update",
}


@dataclass(slots=True)
class Doing:
    """What a process is at.

    Attributes:
        what: in words.
        step, steps: of the training; 0 when it does not train.
        moved, total: bytes of the transfer under way, if there is one; ``rate`` in bytes a second.
    """

    what: str
    since: float
    step: int = 0
    steps: int = 0
    moved: int = 0
    total: int = 0
    rate: float = 0.0


@dataclass(frozen=True, slots=True)
class Moved:
    """One message that a site received (``down``) or sent (``up``)."""

    site: str
    direction: str
    round: int
    bytes: int
    original_bytes: int
    seconds: float


@dataclass(slots=True)
class RoundScore:
    """One round, or the final model as ``rounds + 1``, which is evaluated only.

    Attributes:
        steps: the loss of each training step, by site.
        held_out: loss of the model that the round began with and how many tokens it is the mean of, by site.
        seconds: from the round's begin to its model being sealed.
    """

    steps: dict[str, list[float]] = field(default_factory=lambda: defaultdict[str, list[float]](list))
    held_out: dict[str, tuple[float, int]] = field(default_factory=lambda: {})
    seconds: float = 0.0

    @property
    def held_out_loss(self) -> float | None:
        """Over all held-out tokens; None before any site has evaluated."""
        tokens = sum(count for _, count in self.held_out.values())
        return sum(loss * count for loss, count in self.held_out.values()) / tokens if tokens else None

    @property
    def train_loss(self) -> float | None:
        """Mean over all steps of all sites; None before the first."""
        losses = [loss for site in self.steps.values() for loss in site]
        return sum(losses) / len(losses) if losses else None


class Scoreboard:
    """Takes events, keeps scores."""

    def __init__(self, rounds: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total_rounds = rounds
        self.round = 0
        self.doing: dict[str, Doing] = {}
        self.rounds: dict[int, RoundScore] = defaultdict(RoundScore)
        self.moved: list[Moved] = []
        self.growth: dict[str, int | None] = {}
        self.seconds: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self.digests: dict[str, str] = {}
        self.topics: dict[str, list[str]] = {}
        self.url = ""
        self._clock = clock
        self.began = clock()
        self._marks: dict[str, float] = {}

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return self._clock() - self.began

    def begins(self, process: str, what: str) -> None:
        """A process takes something up."""
        self.doing[process] = Doing(what, self._clock())

    def grew(self, process: str, growth: int | None) -> None:
        """Note how far a process grew in a transfer; the most counts."""
        known = self.growth.get(process)
        self.growth[process] = growth if known is None else max(known, growth or 0)

    def take(self, process: str, event: Event) -> None:
        """Count an event of a site, the aggregator or the broker."""
        name = str(event.get("event"))
        if process == BROKER:
            if name == "ready":
                self.url = str(event["url"])
                self.begins(process, "keeping and handing out messages")
        elif process == AGGREGATOR:
            self._take_aggregator(name, event)
        else:
            self._take_site(process, name, event)

    # --- sites -------------------------------------------------------------------------------------------

    def _take_site(self, site: str, name: str, event: Event) -> None:
        match name:
            case "share":
                self.topics[site] = [str(topic) for topic in as_list(event["topics"])]
            case "phase":
                self.begins(site, PHASES[str(event["phase"])])
            case "phase_done":
                self.seconds[site][str(event["phase"])] += as_float(event["seconds"])
            case "progress":
                self._progress(site, event)
                self.doing[site].rate = as_float(event["rate"])
            case "transferred":
                self._transferred(site, event)
            case "step":
                self.rounds[as_int(event["round"])].steps[site].append(as_float(event["loss"]))
                self.doing[site].step, self.doing[site].steps = as_int(event["step"]), as_int(event["steps"])
            case "evaluated":
                told = as_float(event["loss"]), as_int(event["tokens"])
                self.rounds[as_int(event["round"])].held_out[site] = told
            case "final":
                self.digests[site] = str(event["digest"])
                self.begins(site, "done")
            case _:
                pass

    def _transferred(self, site: str, event: Event) -> None:
        self.moved.append(
            Moved(
                site=site,
                direction=str(event["direction"]),
                round=as_int(event["round"]),
                bytes=as_int(event["bytes"]),
                original_bytes=as_int(event["original_bytes"]),
                seconds=as_float(event["seconds"]),
            )
        )
        growth = event["peak_growth"]
        self.grew(site, None if growth is None else as_int(growth))

    # --- the aggregator ----------------------------------------------------------------------------------

    def _take_aggregator(self, name: str, event: Event) -> None:
        match name:
            case "round":
                self.round = as_int(event["round"])
                self._marks["round"] = self._clock()
                self.begins(AGGREGATOR, f"waiting for updates, 0 of {event['sites']} in")
            case "folding":
                if "folding" not in self._marks:
                    self._marks["folding"] = self._clock()
                    self.begins(AGGREGATOR, f"folding the update of site {event['site']}")
                self._progress(AGGREGATOR, event)
            case "folded":
                self._spent("fold", "folding")
                counted = f"{event['updates']} of {event['expected']} in"
                self.begins(AGGREGATOR, f"waiting for updates, {counted}")
            case "publishing":
                if "publishing" not in self._marks:
                    self._marks["publishing"] = self._clock()
                    self.begins(AGGREGATOR, f"publishing global model {event['round']}")
                self._progress(AGGREGATOR, event)
            case "published":
                self._spent("publish", "publishing")
                if "round" in self._marks:
                    self.rounds[as_int(event["round"]) - 1].seconds = self._clock() - self._marks["round"]
                self.begins(AGGREGATOR, f"global model {event['round']} is sealed")
            case "done":
                self.begins(AGGREGATOR, "done")
            case _:
                pass

    def _progress(self, process: str, event: Event) -> None:
        doing = self.doing[process]
        doing.moved, doing.total = as_int(event["bytes"]), as_int(event["total_bytes"] or 0)

    def _spent(self, phase: str, mark: str) -> None:
        began = self._marks.pop(mark, None)
        if began is not None:
            self.seconds[AGGREGATOR][phase] += self._clock() - began


def as_int(value: object) -> int:
    """An event's whole number. Raises TypeError for anything else, as the functions below."""
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is no whole number")
    return value


def as_float(value: object) -> float:
    """An event's number."""
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def as_list(value: object) -> list[object]:
    """An event's list."""
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return list(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
