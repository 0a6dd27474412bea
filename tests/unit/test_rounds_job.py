"""JobSpec and the headers of a job's messages: what is let in, and what is refused."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tensorbus.aggregator.headers import (
    MAX_EXAMPLES,
    DeclineHeaders,
    ModelHeaders,
    UpdateHeaders,
    parse_answer,
)
from tensorbus.aggregator.job import (
    JobSpec,
    check_name,
    model_key,
    seed_consumer,
    site_consumer,
    update_key,
    updates_consumer,
)
from tensorbus.bus.messages import check_headers
from tensorbus.bus.topics import check_consumer_name
from tensorbus.errors import InvalidName, InvalidRequest, InvalidSpecification, TensorbusError

SPEC: dict[str, Any] = {"job": "sft", "sites": 3, "rounds": 5, "quorum": 2, "deadline": 600}


def test_a_specification_survives_the_way_through_a_header() -> None:
    """What the aggregator decides is what a site reads, pipelines included."""
    settings: dict[str, Any] = SPEC | {"quorum": "80%"}
    spec = JobSpec(
        **settings,
        down={"quantizer": {"name": "none"}, "keep": ["*norm*"]},
        reducer="trimmed:0.1 | fedadam:lr=0.01",
        mode="buffered",
        buffer=4,
        staleness=3,
        alpha=0.25,
        select=0.1,
        deterministic=True,
    )
    headers = check_headers(ModelHeaders(6, True, spec).to_headers())
    assert ModelHeaders.parse("sft", headers) == ModelHeaders(6, True, spec)
    assert JobSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"sites": 0}, "sites"),
        ({"sites": True}, "sites"),
        ({"rounds": 2.0}, "rounds"),
        ({"quorum": 4}, "no round could close"),
        ({"quorum": -1}, "quorum"),
        ({"deadline": 0}, "deadline"),
        ({"deadline": math.nan}, "deadline"),
        ({"deadline": math.inf}, "deadline"),
        ({"deadline": "60"}, "deadline"),
        ({"quorum": "80"}, "quorum '80' is no share"),
        ({"quorum": "0%"}, "quorum"),
        ({"quorum": "101%"}, "quorum"),
        ({"quorum": "1e9%"}, "quorum"),
        ({"quorum": 2.0}, "quorum"),
        ({"mode": "both"}, "mode"),
        ({"mode": "buffered"}, "buffer"),
        ({"buffer": 2}, "buffer"),
        ({"mode": "buffered", "buffer": 1}, "no round could close"),
        ({"staleness": -1}, "staleness"),
        ({"staleness": 1.5}, "staleness"),
        ({"alpha": -0.1}, "alpha"),
        ({"alpha": math.nan}, "alpha"),
        ({"select": 0}, "select"),
        ({"select": 1.1}, "select"),
        ({"deterministic": 1}, "deterministic"),
        ({"reducer": 5}, "reducer"),
        ({"job": "a.b"}, "job"),
        ({"job": "x" * 32}, "job"),
        ({"down": {"quantizer": {"name": "no-such-codec"}}}, "no-such-codec"),
        ({"up": {"codec": "nf4"}}, "codec"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_specification_that_could_not_work_is_refused_with_the_reason(
    change: dict[str, object], why: str
) -> None:
    """It comes from another machine, so each entry is checked."""
    with pytest.raises(TensorbusError, match=why):
        JobSpec.from_json(SPEC | change)


def test_a_specification_of_an_older_release_has_rounds_of_all_sites() -> None:
    """What is new has a default that changes nothing."""
    spec = JobSpec.from_json(json.dumps(SPEC))
    assert (spec.mode, spec.staleness, spec.select, spec.reducer) == ("sync", 0, 1.0, "mean")
    assert (spec.full, spec.enough, spec.kept) == (3, 2, 1)


@pytest.mark.parametrize("value", ["{", "[]", "null", 5, None, json.dumps({"job": "sft"})])
def test_what_is_no_specification_is_refused(value: object) -> None:
    """Text that is no JSON, JSON that is no map, a map that lacks entries."""
    with pytest.raises(InvalidSpecification):
        JobSpec.from_json(value)


@pytest.mark.parametrize(
    "name", ["", "..", "a/b", "a b", "a\0", "é", "x" * 10_000, "-a", "a-", "a--b", "a\n", None, 7]
)
def test_a_name_that_could_not_be_part_of_a_topic_or_consumer_is_refused(name: object) -> None:
    """Job and site names end up in topics, keys and consumer names."""
    with pytest.raises(InvalidName):
        check_name(name, "site")


def test_the_longest_names_make_legal_consumers_that_no_other_site_or_job_has() -> None:
    """31 + 2 + 31 characters are within the broker's 64."""
    assert check_consumer_name(site_consumer("j" * 31, "s" * 31))
    assert check_consumer_name(updates_consumer("j" * 31))
    assert check_consumer_name(seed_consumer("j" * 31))
    assert site_consumer("a-b", "c") != site_consumer("a", "b-c")
    with pytest.raises(InvalidName):
        check_name("aggregator--updates", "site")


def test_keys_name_each_model_and_each_update_once() -> None:
    """The idempotency keys of the whole federation."""
    assert model_key("sft", 3) == "sft/model-3"
    assert update_key("sft", 3, "a") == "sft/round-3/a"


def headers(**change: object) -> dict[str, object]:
    """Headers of a good update, but for the change."""
    return {
        "kind": "update",
        "job": "sft",
        "round": 1,
        "site": "a",
        "num_examples": 5,
        "metrics": "{}",
    } | change


def test_an_update_survives_the_way_through_its_headers() -> None:
    """Metrics too; a NaN arrives as NaN."""
    sent = UpdateHeaders("a", 3, 812, {"loss": 1.5, "grad": math.nan})
    got = UpdateHeaders.parse("sft", check_headers(sent.to_headers("sft")))
    assert (got.site, got.number, got.num_examples, got.metrics["loss"]) == ("a", 3, 812, 1.5)
    assert math.isnan(got.metrics["grad"])


@pytest.mark.parametrize(
    "count", [0, -1, math.nan, math.inf, -math.inf, 2 * MAX_EXAMPLES, 10**400, True, "5", None]
)
def test_num_examples_is_a_positive_finite_number_within_its_limit(count: object) -> None:
    """One site's weight must not be able to spoil the mean of all."""
    with pytest.raises(InvalidRequest, match="num_examples"):
        UpdateHeaders.parse("sft", headers(num_examples=count))


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "model"},
        {"job": "other"},
        {"round": 0},
        {"round": True},
        {"round": 1.5},
        {"round": "1"},
        {"site": "../b"},
        {"site": None},
        {"metrics": "{"},
        {"metrics": "[]"},
        {"metrics": 5},
        {"metrics": '{"loss": "high"}'},
        {"metrics": '{"loss": true}'},
        {"metrics": '{"loss": 1e400}'},
        {"metrics": json.dumps({"": 1})},
        {"metrics": json.dumps({"\x1b[2J": 1})},
        {"metrics": '{"\\ud800": 1}'},
        {"metrics": json.dumps({str(n): 1 for n in range(65)})},
        {"metrics": "[" * 100_000},
    ],
)
def test_update_headers_that_make_no_sense_are_refused(change: dict[str, object]) -> None:
    """Each is a TensorbusError with a reason, whatever was sent."""
    with pytest.raises((InvalidRequest, InvalidName)):
        UpdateHeaders.parse("sft", headers(**change))


def test_a_word_of_a_site_survives_the_way_through_its_headers_and_is_told_from_an_update() -> None:
    """Both lie on one topic."""
    word = DeclineHeaders("a", 3, leaves=True, reason="no power")
    assert parse_answer("sft", check_headers(word.to_headers("sft"))) == word
    sent = UpdateHeaders("a", 3, 812)
    assert parse_answer("sft", check_headers(sent.to_headers("sft"))) == sent


@pytest.mark.parametrize(
    "change",
    [
        {"leaves": 1},
        {"leaves": None},
        {"reason": 5},
        {"reason": "x" * 501},
        {"reason": "a\nb"},
        {"round": 0},
        {"site": "/"},
    ],
)
def test_a_word_that_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    """Each is a TensorbusError with a reason."""
    good = DeclineHeaders("a", 1).to_headers("sft")
    with pytest.raises((InvalidRequest, InvalidName)):
        parse_answer("sft", good | change)


@pytest.mark.parametrize(
    "change", [{"final": 1}, {"round": -1}, {"spec": "{"}, {"job": "b"}, {"kind": "update"}]
)
def test_model_headers_that_make_no_sense_are_refused(change: dict[str, object]) -> None:
    """A site does not train what it cannot place."""
    good = ModelHeaders(1, False, JobSpec(**SPEC)).to_headers()
    with pytest.raises((InvalidRequest, InvalidSpecification)):
        ModelHeaders.parse("sft", good | change)
