"""JobSpec: what the aggregator decides for everyone, and the names that a job's messages go by.

The specification travels in the headers of every global model, so that a site's script needs to know no
more than the job's name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Literal, TypeGuard, cast

from tensorbus.codecs.pipeline import Pipeline
from tensorbus.errors import InvalidName, InvalidSpecification

MAX_ROUNDS = 1_000_000
MAX_SITES = 4_096
MAX_DEADLINE = 366 * 86_400.0
MAX_STALENESS = 1_000
MAX_ALPHA = 100.0
MAX_NAME = 31
_NEEDED = {"job", "sites", "rounds", "quorum", "deadline"}
_PERCENT = re.compile(r"(\d{1,3}(?:\.\d{1,6})?) ?%", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9_]+(-[A-Za-z0-9_]+)*", re.ASCII)


def check_name(value: object, what: str) -> str:
    """``value``, when it can name a job or a site: 1 to 31 letters, digits, ``_`` and single hyphens within.

    Two of them, joined by a double hyphen, make the name of a consumer, unique and short enough.

    Raises:
        InvalidName: it cannot.
    """
    if not isinstance(value, str) or len(value) > MAX_NAME or not _NAME.fullmatch(value):
        shown = repr(value)
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        raise InvalidName(
            f"{what} {shown} is no name; use 1 to 31 letters, digits, '_' and single '-' within"
        )
    return value


Mode = Literal["sync", "buffered"]
"""Rounds of all sites, or a version of the model for every so many updates."""


@dataclass(frozen=True, slots=True)
class JobSpec:
    """A federated training as its aggregator runs it.

    Attributes:
        job: names the job; part of its topics.
        sites: how many sites are expected; a round closes as soon as so many are in.
        rounds: how many there are; the model that the last one makes is the final one.
        quorum: how many are enough at the deadline: a count, or a share such as "80%".
        deadline: seconds from the begin of a round; with fewer than the quorum the round waits on.
        down: pipeline of the global model (JSON form of ``Pipeline``), ``up``: that of the updates.
        reducer: what makes one model of the updates, see ``ReducerSpec``: its text or its JSON form.
        deterministic: the result does not depend on the order in which updates arrive.
        mode: "sync", or "buffered": a round closes with ``buffer`` updates, whoever they are from, and a site
            goes on with the newest model as soon as it has answered (FedBuff, Nguyen et al. 2022).
        buffer: updates that make a round in buffered mode; the quorum is of these then.
        staleness: how many rounds an update may be behind and still count; 0 drops what is late.
        alpha: an update that is d rounds behind counts with ``(1 + d) ** -alpha`` of its examples.
        select: the share of all sites that takes part in a round, drawn anew for each; if more than ``sites``
            are drawn, the first ``sites`` count (over-selection).
        own_topics: each site answers on a topic of its own, see ``answers_topic``, so that its token can be
            kept to it: what it says in another's name is refused.
    """

    job: str
    sites: int
    rounds: int
    quorum: int | str
    deadline: float
    down: dict[str, object] = field(default_factory=lambda: Pipeline.parse(None).to_json())
    up: dict[str, object] = field(default_factory=lambda: Pipeline.parse(None).to_json())
    reducer: str | dict[str, object] = "mean"
    deterministic: bool = False
    mode: Mode = "sync"
    buffer: int | None = None
    staleness: int = 0
    alpha: float = 0.5
    select: float = 1.0
    own_topics: bool = False

    def __post_init__(self) -> None:
        check_name(self.job, "job")
        _check_count("sites", self.sites, MAX_SITES)
        _check_count("rounds", self.rounds, MAX_ROUNDS)
        self._check_mode()
        self._check_quorum()
        if not is_number(self.deadline) or not 0 < self.deadline <= MAX_DEADLINE:
            raise InvalidSpecification(f"deadline is {self.deadline!r:.80}; it must be seconds up to a year")
        if not is_number(self.alpha) or not 0 <= self.alpha <= MAX_ALPHA:
            raise InvalidSpecification(f"alpha is {self.alpha!r:.80}; it must be from 0 to {MAX_ALPHA:g}")
        if not is_number(self.select) or not 0 < self.select <= 1:
            raise InvalidSpecification(f"select is {self.select!r:.80}; it must be above 0 and up to 1")
        Pipeline.parse(self.down)
        Pipeline.parse(self.up)
        self._check_reducer()

    @property
    def full(self) -> int:
        """So many close a round at once: sites, or updates in buffered mode."""
        return self.sites if self.buffer is None else self.buffer

    @property
    def enough(self) -> int:
        """So many close it from the deadline on."""
        return self.enough_of(self.full)

    def enough_of(self, expected: int) -> int:
        """The quorum where only so many are expected: a share is of these, a count is what it is."""
        if isinstance(self.quorum, int):
            return self.quorum
        return max(1, math.ceil(_share(self.quorum) * expected))

    def answers_topic(self, site: str) -> str:
        """Where this site publishes its updates, and says that it sits out."""
        return f"{updates_topic(self.job)}.{site}" if self.own_topics else updates_topic(self.job)

    @property
    def answers_filter(self) -> str:
        """The topics on which sites answer."""
        return self.answers_topic("*")

    @property
    def kept(self) -> int:
        """How many rounds back models, updates and records are kept."""
        return max(1, self.staleness)

    def _check_mode(self) -> None:
        if self.mode not in ("sync", "buffered"):
            raise InvalidSpecification(f"mode is {self.mode!r:.80}; it must be 'sync' or 'buffered'")
        if (self.buffer is not None) != (self.mode == "buffered"):
            raise InvalidSpecification("buffer belongs to the mode 'buffered', which needs it")
        if self.buffer is not None:
            _check_count("buffer", self.buffer, MAX_SITES)
        _check_count("staleness", self.staleness, MAX_STALENESS, least=0)
        for name in ("deterministic", "own_topics"):
            value: object = getattr(self, name)
            if not isinstance(value, bool):
                raise InvalidSpecification(f"{name} is {value!r:.80}; it must be true or false")

    def _check_quorum(self) -> None:
        quorum: object = self.quorum
        if isinstance(quorum, str):
            if not 0 < _share(quorum) <= 1:
                raise InvalidSpecification(f"quorum is {quorum!r:.80}; a share is above 0% and up to 100%")
            return
        _check_count("quorum", quorum, MAX_SITES)
        if self.enough > self.full:
            of = "expected sites" if self.mode == "sync" else "updates of a round"
            raise InvalidSpecification(
                f"quorum {self.quorum} is more than the {self.full} {of}: no round could close"
            )

    def _check_reducer(self) -> None:
        if not isinstance(cast(object, self.reducer), str | dict):
            raise InvalidSpecification(f"reducer is {self.reducer!r:.80}; it must be text or a map")

    def to_json(self) -> dict[str, object]:
        """A plain map, from which ``from_json`` makes an equal specification."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> JobSpec:
        """The specification in ``value``, a map or its JSON text.

        Raises:
            InvalidSpecification, InvalidName, UnknownCodec: it is none, saying which entry is wrong.
        """
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise InvalidSpecification(f"the job specification is not JSON: {error}") from None
        if not isinstance(value, Mapping):
            raise InvalidSpecification(f"a job specification is a map, not {type(value).__name__}")
        given = cast("Mapping[str, object]", value)
        known = set(cls.__dataclass_fields__)
        if unknown := sorted(str(name) for name in given if name not in known):
            raise InvalidSpecification(f"the job specification has no entry {', '.join(unknown):.200}")
        if missing := sorted(_NEEDED - set(given)):
            raise InvalidSpecification(f"the job specification lacks {', '.join(missing)}")
        return cls(**given)  # pyright: ignore[reportArgumentType]  __post_init__ checks each


def is_number(value: object) -> TypeGuard[float]:
    """Whether ``value`` is an int or a float, which a bool is not; NaN and Inf are."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_count(name: str, value: object, most: int, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidSpecification(
            f"{name} is {value!r:.80}; it must be a whole number from {least} to {most}"
        )


def _share(text: str) -> Fraction:
    """The share in a text such as "80%", exactly."""
    found = _PERCENT.fullmatch(text)
    if not found:
        raise InvalidSpecification(f"quorum {text!r:.80} is no share; write '80%', or a count as a number")
    return Fraction(found[1]) / 100


def model_topic(job: str) -> str:
    """Where the global models of a job appear."""
    return f"fl.{job}.model"


def updates_topic(job: str) -> str:
    """Where the sites of a job publish, unless each has a topic of its own below it."""
    return f"fl.{job}.updates"


def rounds_topic(job: str) -> str:
    """Where the records of a job's rounds are, and what people want of it."""
    return f"fl.{job}.rounds"


def claims_topic(job: str) -> str:
    """Where aggregators say that they have the job."""
    return f"fl.{job}.claims"


def seed_topic(job: str) -> str:
    """Where a first model may be published when the aggregator was given none."""
    return f"fl.{job}.seed"


def model_key(job: str, number: int) -> str:
    """The idempotency key of the model that round ``number`` begins with."""
    return f"{job}/model-{number}"


def update_key(job: str, number: int, site: str, attempt: int = 1) -> str:
    """The idempotency key of a site's update in round ``number``.

    ``attempt`` counts from 1; a site whose update was refused may make another.
    """
    return f"{job}/round-{number}/{site}" + (f"/{attempt}" if attempt > 1 else "")


def decline_key(job: str, number: int, site: str) -> str:
    """The idempotency key of a site's word that round ``number`` goes on without it."""
    return f"{job}/decline-{number}/{site}"


def leave_key(job: str, number: int, site: str, time: str) -> str:
    """The idempotency key of a site's word, in round ``number``, that the job goes on without it.

    ``time`` tells it from another one, if the site came back in between.
    """
    return f"{job}/leave-{number}/{site}/{time}"


def update_round(key: str) -> int:
    """The round of an update's idempotency key."""
    return int(key.split("/round-", 1)[1].split("/", 1)[0])


def state_name(job: str, site: str | None = None) -> str:
    """The part of a state folder that is a site's, or the aggregator's; no site can be called so."""
    return f"{job}--{site}" if site is not None else f"{job}--aggregator--state"


def site_consumer(job: str, site: str) -> str:
    """The consumer of a site, on the job's models."""
    return f"{job}--{site}"


def updates_consumer(job: str) -> str:
    """The aggregator's consumer on the job's updates; no site can be called so."""
    return f"{job}--aggregator--updates"


def rounds_consumer(job: str) -> str:
    """The aggregator's consumer on what people want of the job."""
    return f"{job}--aggregator--rounds"


def seed_consumer(job: str) -> str:
    """The aggregator's consumer while it waits for a first model."""
    return f"{job}--aggregator--seed"
