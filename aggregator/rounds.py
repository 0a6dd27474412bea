"""Round: who is in, and when it closes. Pure: it is told the time and does no I/O.

An update counts once for each (job, round, site), whatever is redelivered, sent twice or replayed after a
restart. The first sealed message of a site is the one that counts; when that one is refused, another of the
same site may take its place. Updates keep the order in which they were accepted, so that a round that is
folded again, after a refusal or by a restarted aggregator, gives the same bits.

A round closes as soon as every expected site is in; from the deadline on, as soon as the quorum is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from .headers import UpdateHeaders
from .job import JobSpec


class Verdict(StrEnum):
    """What to do with an update that was delivered."""

    FOLD = "fold"
    """It is new: fold it, then ``accept`` or ``refuse`` it."""
    REPEATED = "repeated"
    """The very message that was counted already: a redelivery."""
    DUPLICATE = "duplicate"
    """Another message of a site that is in already."""
    LATE = "late"
    """Its round is over."""
    EARLY = "early"
    """Its round has not begun, so it cannot come from this round's model."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """An update that counts, and the message that holds it."""

    message: str
    headers: UpdateHeaders


@dataclass(slots=True)
class Round:
    """One pass of a job. Times are seconds on any one clock.

    Attributes:
        number: from 1.
        opened: when the aggregator began to collect; a restarted one grants the whole deadline again.
        accepted: by site, in the order of folding.
    """

    spec: JobSpec
    number: int
    opened: float
    accepted: dict[str, Accepted] = field(default_factory=lambda: {})

    def judge(self, message: str, update: UpdateHeaders) -> Verdict:
        """What to do with this update."""
        if update.number != self.number:
            return Verdict.LATE if update.number < self.number else Verdict.EARLY
        held = self.accepted.get(update.site)
        if held is None:
            return Verdict.FOLD
        return Verdict.REPEATED if held.message == message else Verdict.DUPLICATE

    def accept(self, message: str, update: UpdateHeaders) -> None:
        """The update was folded whole."""
        if self.judge(message, update) is not Verdict.FOLD:
            raise ValueError(f"update {message} of {update.site} cannot be accepted in round {self.number}")
        self.accepted[update.site] = Accepted(message, update)

    @property
    def weight(self) -> float:
        """Σ num_examples of the updates that count."""
        return math.fsum(entry.headers.num_examples for entry in self.accepted.values())

    def closes(self, now: float) -> bool:
        """Whether the round is over at ``now``."""
        enough = self.spec.quorum if self.overdue(now) else self.spec.sites
        return len(self.accepted) >= enough

    def overdue(self, now: float) -> bool:
        """Whether the deadline has passed."""
        return now >= self.opened + self.spec.deadline

    def patience(self, now: float) -> float | None:
        """Seconds from ``now`` to the deadline; None once it has passed: only updates count then."""
        return None if self.overdue(now) else self.opened + self.spec.deadline - now

    def metrics(self) -> dict[str, float]:
        """The sites' metrics, each weighted by num_examples over the sites that told a number."""
        sums: dict[str, tuple[float, float]] = {}
        for entry in self.accepted.values():
            weight = entry.headers.num_examples
            for name, value in entry.headers.metrics.items():
                if not math.isnan(value):
                    total, weights = sums.get(name, (0.0, 0.0))
                    sums[name] = (total + weight * value, weights + weight)
        return {name: total / weights for name, (total, weights) in sums.items()}
