"""JobSpec: what the aggregator decides for everyone, and the names that a job's messages go by.

The specification travels in the headers of every global model, so that a site's script needs to know no
more than the job's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TypeGuard, cast

from tensorbus.codecs.pipeline import Pipeline
from tensorbus.errors import InvalidName, InvalidSpecification

MAX_ROUNDS = 1_000_000
MAX_SITES = 4_096
MAX_DEADLINE = 366 * 86_400.0
MAX_NAME = 31
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


@dataclass(frozen=True, slots=True)
class JobSpec:
    """A federated training as its aggregator runs it.

    Attributes:
        job: names the job; part of its topics.
        sites: how many sites are expected; a round closes as soon as so many updates are in.
        rounds: how many there are; the model that the last one makes is the final one.
        quorum: how many updates are enough at the deadline.
        deadline: seconds from the begin of a round; with fewer updates than the quorum the round waits on.
        down: pipeline of the global model (JSON form of ``Pipeline``), ``up``: that of the updates.
    """

    job: str
    sites: int
    rounds: int
    quorum: int
    deadline: float
    down: dict[str, object] = field(default_factory=lambda: Pipeline.parse(None).to_json())
    up: dict[str, object] = field(default_factory=lambda: Pipeline.parse(None).to_json())

    def __post_init__(self) -> None:
        check_name(self.job, "job")
        _check_count("sites", self.sites, MAX_SITES)
        _check_count("rounds", self.rounds, MAX_ROUNDS)
        _check_count("quorum", self.quorum, MAX_SITES)
        if self.quorum > self.sites:
            raise InvalidSpecification(
                f"quorum {self.quorum} is more than the {self.sites} expected sites: no round could close"
            )
        if not is_number(self.deadline) or not 0 < self.deadline <= MAX_DEADLINE:
            raise InvalidSpecification(f"deadline is {self.deadline!r:.80}; it must be seconds up to a year")
        Pipeline.parse(self.down)
        Pipeline.parse(self.up)

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
        if missing := sorted(known - {"down", "up"} - set(given)):
            raise InvalidSpecification(f"the job specification lacks {', '.join(missing)}")
        return cls(**given)  # pyright: ignore[reportArgumentType]  __post_init__ checks each


def is_number(value: object) -> TypeGuard[float]:
    """Whether ``value`` is an int or a float, which a bool is not; NaN and Inf are."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_count(name: str, value: object, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise InvalidSpecification(f"{name} is {value!r}; it must be a whole number from 1 to {most}")


def model_topic(job: str) -> str:
    """Where the global models of a job appear."""
    return f"fl.{job}.model"


def updates_topic(job: str) -> str:
    """Where the sites of a job publish."""
    return f"fl.{job}.updates"


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


def seed_consumer(job: str) -> str:
    """The aggregator's consumer while it waits for a first model."""
    return f"{job}--aggregator--seed"
