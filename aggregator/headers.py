"""The headers of a job's messages, checked as they come in: models, updates, and words of sites that decline.

Header values are scalars on the wire; the specification and the metrics are therefore JSON text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import cast

from tensorbus.errors import InvalidRequest

from .job import MAX_ROUNDS, JobSpec, check_name, is_number

Scalar = str | int | float | bool | None

MAX_EXAMPLES = 1e12
"""Weights beyond it would cost an fp32 sum its range, and no site has so many examples."""

MAX_SUM_OF_EXAMPLES = 2.0**100
"""The same of a region's exact sums."""

MAX_METRIC = 1e100
"""In size; NaN is let through, since a loss that diverged is worth telling."""

MAX_METRICS = 64
MAX_METRIC_NAME = 64
MAX_REASON = 500

MAX_SPEC_WITH_HISTORY = 8 << 10
"""Characters of a specification beyond which there is no room for a history beside it."""


@dataclass(frozen=True, slots=True)
class ModelHeaders:
    """Of a global model: ``number`` is the round that begins with it, rounds + 1 for the final one.

    ``history`` tells whoever watches how the rounds before went, see `history`; nothing else depends on it.
    """

    number: int
    final: bool
    spec: JobSpec
    history: str | None = None

    def to_headers(self) -> dict[str, Scalar]:
        headers: dict[str, Scalar] = {
            "kind": "model",
            "job": self.spec.job,
            "round": self.number,
            "final": self.final,
            "spec": json.dumps(self.spec.to_json(), separators=(",", ":")),
        }
        fits = self.history is not None and len(str(headers["spec"])) <= MAX_SPEC_WITH_HISTORY
        return headers | {"history": self.history} if fits else headers

    @classmethod
    def parse(cls, job: str, headers: Mapping[str, object]) -> ModelHeaders:
        """Raises InvalidRequest, InvalidSpecification: these are not the headers of a model of ``job``."""
        _check_kind("model", job, headers)
        final = headers.get("final")
        if not isinstance(final, bool):
            raise InvalidRequest(f"the model's header 'final' is {final!r}; it must be true or false")
        history = headers.get("history")
        return cls(
            _round(headers),
            final,
            JobSpec.from_json(headers.get("spec")),
            history if isinstance(history, str) else None,
        )


@dataclass(frozen=True, slots=True)
class UpdateHeaders:
    """Of a site's update in round ``number``.

    Attributes:
        num_examples: its weight in the mean.
        partial: it is a region's exact sums, which bring weights of their own; see `partials`.
    """

    site: str
    number: int
    num_examples: float
    metrics: dict[str, float] = field(default_factory=lambda: {})
    partial: bool = False

    def __post_init__(self) -> None:
        check_name(self.site, "site")
        if not isinstance(cast(object, self.partial), bool):
            raise InvalidRequest(f"the header 'partial' is {self.partial!r:.80}; it must be true or false")
        most = MAX_SUM_OF_EXAMPLES if self.partial else MAX_EXAMPLES
        if not is_number(self.num_examples) or not 0 < self.num_examples <= most:
            raise InvalidRequest(
                f"num_examples is {self.num_examples!r:.80}, not a positive number up to {most:.0e}"
            )
        if len(self.metrics) > MAX_METRICS:
            raise InvalidRequest(f"{len(self.metrics)} metrics; at most {MAX_METRICS} are taken")
        for name, value in cast("dict[object, object]", self.metrics).items():
            if not _is_line(name, MAX_METRIC_NAME) or not name:
                raise InvalidRequest(
                    f"a metric's name is 1 to {MAX_METRIC_NAME} printable characters, not {name!r:.80}"
                )
            if not is_number(value) or abs(value) > MAX_METRIC:
                raise InvalidRequest(
                    f"metric {name!r} is {value!r:.80}; it must be a number up to {MAX_METRIC:.0e}"
                )

    def to_headers(self, job: str) -> dict[str, Scalar]:
        # JSON has no NaN: a loss that diverged is told as null, so that any client can read the header.
        metrics = {name: None if math.isnan(value) else value for name, value in self.metrics.items()}
        headers: dict[str, Scalar] = {
            "kind": "update",
            "job": job,
            "round": self.number,
            "site": self.site,
            "num_examples": self.num_examples,
            "metrics": json.dumps(metrics, separators=(",", ":")),
        }
        return headers | {"partial": True} if self.partial else headers

    @classmethod
    def parse(cls, job: str, headers: Mapping[str, object]) -> UpdateHeaders:
        """Raises InvalidRequest, InvalidName: these are not the headers of an update to ``job``."""
        _check_kind("update", job, headers)
        site = check_name(headers.get("site"), "site")
        examples = cast(float, headers.get("num_examples"))  # __post_init__ checks it
        partial = cast(bool, headers.get("partial", False))
        return cls(site, _round(headers), examples, _metrics(headers.get("metrics")), partial)


def mean_metrics(updates: Iterable[UpdateHeaders]) -> dict[str, float]:
    """Each metric's mean, weighted by num_examples, over the updates that told a number."""
    sums: dict[str, tuple[float, float]] = {}
    for update in updates:
        weight = update.num_examples
        for name, value in update.metrics.items():
            if not math.isnan(value):
                total, weights = sums.get(name, (0.0, 0.0))
                sums[name] = (total + weight * value, weights + weight)
    return {name: total / weights for name, (total, weights) in sums.items()}


@dataclass(frozen=True, slots=True)
class DeclineHeaders:
    """Of a site's word that round ``number`` goes on without it; all further ones too, if it ``leaves``."""

    site: str
    number: int
    leaves: bool = False
    reason: str = ""

    def __post_init__(self) -> None:
        check_name(self.site, "site")
        if not _is_line(self.reason, MAX_REASON):
            raise InvalidRequest(f"a reason is one line of up to {MAX_REASON} printable characters")
        if not isinstance(cast(object, self.leaves), bool):
            raise InvalidRequest(f"the header 'leaves' is {self.leaves!r:.80}; it must be true or false")

    def to_headers(self, job: str) -> dict[str, Scalar]:
        return {
            "kind": "decline",
            "job": job,
            "round": self.number,
            "site": self.site,
            "leaves": self.leaves,
            "reason": self.reason,
        }

    @classmethod
    def parse(cls, job: str, headers: Mapping[str, object]) -> DeclineHeaders:
        """Raises InvalidRequest, InvalidName: these are not the headers of a site that declines."""
        _check_kind("decline", job, headers)
        site = check_name(headers.get("site"), "site")
        leaves, reason = cast(bool, headers.get("leaves")), cast(str, headers.get("reason"))
        return cls(site, _round(headers), leaves, reason)


def parse_answer(job: str, headers: Mapping[str, object]) -> UpdateHeaders | DeclineHeaders:
    """What a site has to say of a round. Raises InvalidRequest, InvalidName: it is neither."""
    if headers.get("kind") == "decline":
        return DeclineHeaders.parse(job, headers)
    return UpdateHeaders.parse(job, headers)


def _check_kind(kind: str, job: str, headers: Mapping[str, object]) -> None:
    for name, wanted in (("kind", kind), ("job", job)):
        if headers.get(name) != wanted:
            raise InvalidRequest(f"the header {name!r} is {headers.get(name)!r:.80}, not {wanted!r}")


def _round(headers: Mapping[str, object]) -> int:
    number = headers.get("round")
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= MAX_ROUNDS + 1:
        raise InvalidRequest(f"the header 'round' is {number!r:.80}; it must be a whole number from 1")
    return number


def _is_line(value: object, most: int) -> bool:
    """Whether it is text that can be shown: no control characters, nor lone surrogates."""
    return isinstance(value, str) and len(value) <= most and value.isprintable()


def _metrics(text: object) -> dict[str, float]:
    """The metrics in a header; null stands for a value that was not finite."""
    if text is None:
        return {}
    try:
        value: object = json.loads(cast(str, text))
    except (ValueError, TypeError, RecursionError):
        raise InvalidRequest("the header 'metrics' is not JSON text") from None
    if not isinstance(value, dict):
        raise InvalidRequest("the header 'metrics' is not a JSON map of numbers")
    metrics = cast("dict[str, float | None]", value)
    return {name: math.nan if number is None else number for name, number in metrics.items()}
