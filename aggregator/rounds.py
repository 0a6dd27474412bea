"""Round: who is in, and when it closes. Pure: it is told the time and does no I/O.

An update counts once for each (job, site, version), its version being the round whose model it was trained
from; whatever is redelivered, sent twice or replayed after a restart. The first sealed message of a site is
the one that counts; when that one is refused, another of the same site may take its place. Updates keep the
order in which they were accepted, so that a round that is folded again gives the same bits.

A round closes as soon as every expected site is in; from the deadline on, as soon as the quorum is. A site
that declines, or has left, is not expected. In buffered mode updates are counted and not sites, and as many
are expected as make a version, or as there are sites if that is less. While the job is paused, no round
closes, and the deadline moves on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import StrEnum

from .headers import DeclineHeaders, UpdateHeaders, mean_metrics
from .job import JobSpec
from .sampling import deadlines_in, drawn_after
from .staleness import discount


class Verdict(StrEnum):
    """What to do with an update that was delivered."""

    FOLD = "fold"
    """It is new: fold it, then ``accept`` it, or refuse it."""
    REPEATED = "repeated"
    """The very message that was counted already: a redelivery."""
    COUNTED = "counted"
    """The very message went into an earlier model: a redelivery."""
    DUPLICATE = "duplicate"
    """Another message of a site whose update of this version is in already."""
    LATE = "late"
    """Its round is over, for longer than the job allows."""
    EARLY = "early"
    """Its round has not begun, so it cannot come from this round's model."""
    UNDRAWN = "undrawn"
    """Its site need not step in yet: it can be folded ``drawn_in`` so many seconds, if the round goes on."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """An update that counts, with what weight, and the message that holds it."""

    message: str
    headers: UpdateHeaders
    weight: float


@dataclass(frozen=True, slots=True)
class Before:
    """What earlier rounds leave to this one.

    Attributes:
        messages: of the updates that went into models, as far back as an update may be late.
        answers: the same as (site, version).
        sites: that were heard of lately.
        left: those of them that left.
    """

    messages: AbstractSet[str] = frozenset()
    answers: AbstractSet[tuple[str, int]] = frozenset()
    sites: AbstractSet[str] = frozenset()
    left: AbstractSet[str] = frozenset()


@dataclass(slots=True)
class Round:
    """One pass of a job. Times are seconds on any one clock.

    Attributes:
        number: from 1.
        opened: when it began.
        oldest: the oldest version that there still is a model of.
        least: updates that the reducer needs.
        accepted: by site and version, in the order of folding.
        declined, left: sites that do not take part in this round, or in any.
        closed: whether it was closed; nothing counts any more, unless it is opened again.
    """

    spec: JobSpec
    number: int
    opened: float
    before: Before = field(default_factory=Before)
    oldest: int = 1
    least: int = 1
    accepted: dict[tuple[str, int], Accepted] = field(default_factory=lambda: {})
    declined: set[str] = field(default_factory=lambda: set())
    left: set[str] = field(init=False)
    closed: bool = False
    _paused: float | None = None

    def __post_init__(self) -> None:
        self.left = set(self.before.left)

    # --- who is in -----------------------------------------------------------------------------------

    def judge(self, message: str, update: UpdateHeaders, now: float | None = None) -> Verdict:
        """What to do with this update, at ``now``; None is the beginning of the round."""
        answer = update.site, update.number
        if message in self.before.messages:
            return Verdict.COUNTED
        if update.number > self.number:
            return Verdict.EARLY
        # Sums are of the model that they were made for: they cannot be weighed as late ones.
        allowed = 0 if update.partial else self.spec.staleness
        if self.number - update.number > allowed or update.number < self.oldest:
            return Verdict.LATE
        if answer in self.before.answers:
            return Verdict.DUPLICATE
        if (held := self.accepted.get(answer)) is not None:
            return Verdict.REPEATED if held.message == message else Verdict.DUPLICATE
        # Of an earlier round it is not known how long it took, and so not who stepped in.
        if update.number == self.number and self.drawn_in(update.site, now) > 0:
            return Verdict.UNDRAWN
        return Verdict.FOLD

    def drawn_in(self, site: str, now: float | None = None) -> float:
        """Seconds from ``now`` until a site takes part in this round, or steps in; 0 if it does already.

        A site goes by its own clock, and may have seen the model before this round was opened. So one that is
        ahead is not turned away.
        """
        until = self.opened if now is None else now if self._paused is None else self._paused
        deadlines = drawn_after(self.spec.job, self.number, site, self.spec.select)
        return max(0.0, self.opened + deadlines * self.spec.deadline - until) if deadlines else 0.0

    def weight_of(self, update: UpdateHeaders) -> float:
        """What it counts for: its examples, discounted by how far it is behind."""
        return update.num_examples * discount(self.number - update.number, self.spec.alpha)

    def accept(
        self, message: str, update: UpdateHeaders, weight: float | None = None, now: float | None = None
    ) -> Accepted:
        """The update was folded whole. ``weight`` is given where it was decided before a restart."""
        if self.closed or (weight is None and self.judge(message, update, now) is not Verdict.FOLD):
            raise ValueError(f"update {message} of {update.site} cannot be accepted in round {self.number}")
        accepted = Accepted(message, update, self.weight_of(update) if weight is None else weight)
        self.accepted[update.site, update.number] = accepted
        self.left.discard(update.site)
        return accepted

    def decline(self, word: DeclineHeaders) -> bool:
        """A site does not take part. Whether that says anything new of this round.

        One that leaves when it has answered counts here, and is not expected again.
        """
        if word.number > self.number or (word.number < self.number and not word.leaves):
            return False
        away = self.left if word.leaves else self.declined
        if word.site in away or self._answered_since(word):
            return False
        away.add(word.site)
        return True

    def _answered_since(self, word: DeclineHeaders) -> bool:
        """Whether the site's word does not hold any more, or never did: it has sent an update."""
        answers = [*self.accepted, *self.before.answers]
        since = word.number + 1 if word.leaves else word.number
        return any(site == word.site and version >= since for site, version in answers)

    def heard_again(self, site: str) -> None:
        """An update that counts was delivered once more: whatever the site said before it does not hold."""
        self.left.discard(site)

    def need_more(self) -> None:
        """The reducer cannot do with these updates: with one more it may be closed again."""
        self.least = max(self.least, self.count + 1)
        self.closed = False

    def drop(self, message: str) -> None:
        """An update that was accepted cannot be used after all; a round that was closed is open again."""
        self.accepted = {key: entry for key, entry in self.accepted.items() if entry.message != message}
        self.closed = False

    # --- when it closes ------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """Sites that are in; in buffered mode, updates."""
        if self.spec.mode == "buffered":
            return len(self.accepted)
        return len({site for site, _ in self.accepted})

    @property
    def expected(self) -> int:
        """So many can still be counted on; no site is awaited that said it does not come.

        Where sites are drawn nobody knows how many there are, nor who could step in: all are expected then.
        """
        if self.spec.select < 1:
            return self.spec.full
        present = {site for site, _ in self.accepted}
        away = (self.declined | self.left) - present
        known = len(self.before.sites | present | away)
        return max(0, min(self.spec.full, max(self.spec.sites, known) - len(away)))

    @property
    def enough(self) -> int:
        """So many close the round from the deadline on: never fewer."""
        return max(self.least, self.spec.enough_of(self.expected))

    def closes(self, now: float) -> bool:
        """Whether the round may be closed at ``now``."""
        if self.closed or self._paused is not None:
            return False
        wanted = self.enough if self.overdue(now) else max(self.enough, self.expected)
        return self.count >= wanted

    def close(self, now: float) -> tuple[Accepted, ...]:
        """Close it; the updates that it consists of, in the order of folding."""
        if not self.closes(now):
            raise ValueError(f"round {self.number} cannot be closed with {self.count} of {self.expected} in")
        self.closed = True
        return tuple(self.accepted.values())

    def close_as(self, roster: Iterable[str]) -> None:
        """It was closed before a restart, with these messages; all of them are in, and nothing else."""
        if sorted(roster) != sorted(entry.message for entry in self.accepted.values()):
            raise ValueError(f"round {self.number} was closed with other updates than those that are in")
        self.closed = True

    # --- time ----------------------------------------------------------------------------------------

    def overdue(self, now: float) -> bool:
        """Whether the deadline has passed."""
        return self._paused is None and now >= self.opened + self.spec.deadline

    def deadlines(self, now: float) -> int:
        """How many have passed, the second one being as long after the first as that took."""
        return 0 if self.paused else deadlines_in(now - self.opened, self.spec.deadline)

    def lacking(self) -> str:
        """Why it cannot be closed although the deadline has passed, in a line."""
        present = {site for site, _ in self.accepted}
        said = [f"{self.count} of the {self.enough} updates that are needed are in"]
        for sites, what in ((self.declined - self.left, "sit it out"), (self.left, "have left")):
            if away := sorted(sites - present):
                more = f" and {len(away) - 3} more" if len(away) > 3 else ""
                said.append(f"{', '.join(away[:3])}{more} {what}")
        if self.count >= self.expected:
            said.append("no other site is expected: it waits for one that comes, or comes back")
        return "; ".join(said)

    def patience(self, now: float) -> float | None:
        """Seconds from ``now`` to the deadline; None when it changes nothing: it has passed, or waits too."""
        if self._paused is not None or self.overdue(now):
            return None
        return self.opened + self.spec.deadline - now

    @property
    def paused(self) -> bool:
        """Whether it waits for somebody to resume the job."""
        return self._paused is not None

    def pause(self, now: float) -> None:
        """Do not close until ``resume``. Done twice it is done once."""
        if self._paused is None:
            self._paused = max(now, self.opened)

    def resume(self, now: float) -> None:
        """Go on; the deadline is as far away as it was."""
        if self._paused is not None:
            self.opened += max(0.0, now - self._paused)
            self._paused = None

    # --- what to tell --------------------------------------------------------------------------------

    @property
    def examples(self) -> float:
        """Σ num_examples of the updates that count."""
        return math.fsum(entry.headers.num_examples for entry in self.accepted.values())

    @property
    def weight(self) -> float:
        """The same, each discounted by how late it was."""
        return math.fsum(entry.weight for entry in self.accepted.values())

    @property
    def behind(self) -> list[int]:
        """How many rounds each update is behind, in the order of folding."""
        return [self.number - version for _, version in self.accepted]

    def metrics(self) -> dict[str, float]:
        """The sites' metrics, each weighted by num_examples over the updates that told a number."""
        return mean_metrics(entry.headers for entry in self.accepted.values())
