"""What goes wrong in which round: dealt like cards, so that a short run has some of everything."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Deed = Literal["kill", "start", "pause", "continue", "double", "single"]

BROKER, AGGREGATOR = "broker", "aggregator"


@dataclass(frozen=True, slots=True, order=True)
class Event:
    """``deed`` befalls ``who``, ``at`` seconds after the round's model was seen."""

    at: float
    who: str
    deed: Deed


@dataclass(slots=True)
class Dealer:
    """Deals the events of one round after another.

    Attributes:
        chance: every choice is its.
        deadline: of the rounds, in seconds; pauses may be longer, and make a site late.
        dealt: how often each thing was dealt so far: "site kill", "broker kill", ….
    """

    chance: random.Random
    sites: Sequence[str]
    deadline: float
    dealt: Counter[str] = field(default_factory=Counter[str])
    _broker: list[bool] = field(default_factory=list[bool])
    _aggregator: list[Deed | None] = field(default_factory=list["Deed | None"])

    def deal(self) -> list[Event]:
        """The next round's, in no order."""
        chance = self.chance
        killed, paused, doubled, *others = chance.sample(self.sites, len(self.sites))
        events = self._for("site", killed, "kill") + self._for("site", paused, "pause")
        events += self._for("site", doubled, "double")
        for site in others:
            if chance.random() < 0.2:
                events += self._for("site", site, chance.choice(("kill", "pause")))
        if not self._broker:
            self._broker = chance.sample((True, False), 2)
        if not self._aggregator:
            self._aggregator = chance.sample(("kill", "kill", "pause", "double", None), 5)
        if self._broker.pop():
            events += self._for(BROKER, BROKER, "kill")
        if (deed := self._aggregator.pop()) is not None:
            events += self._for(AGGREGATOR, AGGREGATOR, deed)
        return events

    def _for(self, kind: str, who: str, deed: Deed) -> list[Event]:
        """Something bad, and what ends it."""
        chance = self.chance
        self.dealt[f"{kind} {deed}"] += 1
        at = chance.uniform(0.0, 1.2 if kind == "site" else self.deadline)
        if deed == "pause":
            longest = 2 * self.deadline if kind == "site" else 1.0
            return [Event(at, who, "pause"), Event(at + chance.uniform(0.2, longest), who, "continue")]
        if deed == "double":
            if kind == AGGREGATOR:
                return [Event(at, who, "double")]  # the older one ends by itself
            return [Event(at, who, "double"), Event(at + chance.uniform(1.0, 4.0), who, "single")]
        longest = self.deadline if kind == "site" else 0.4
        return [Event(at, who, "kill"), Event(at + chance.uniform(0.0, longest), who, "start")]
