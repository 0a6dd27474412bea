"""Rounds: when they close, and what counts. In virtual time."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorbus.aggregator.headers import UpdateHeaders
from tensorbus.aggregator.job import JobSpec
from tensorbus.aggregator.rounds import Round, Verdict

SITES = ("a", "b", "c")


def make_round(*, sites: int = 3, quorum: int = 2, deadline: float = 60.0, opened: float = 1000.0) -> Round:
    """Round 2 of 5."""
    spec = JobSpec(job="sft", sites=sites, rounds=5, quorum=quorum, deadline=deadline)
    return Round(spec, number=2, opened=opened)


def update(site: str, number: int = 2, num_examples: float = 10, **metrics: float) -> UpdateHeaders:
    """An update to that round."""
    return UpdateHeaders(site, number, num_examples, metrics)


def test_a_round_closes_when_every_expected_site_is_in() -> None:
    """No deadline is waited for when nobody else can come."""
    round_ = make_round()
    for site in SITES:
        assert not round_.closes(1000.0)
        round_.accept(f"message-{site}", update(site))
    assert round_.closes(1000.0)


def test_a_quorum_is_enough_from_the_deadline_on_and_not_before() -> None:
    """Two of three sites close the round at 60 s sharp."""
    round_ = make_round()
    round_.accept("1", update("a"))
    round_.accept("2", update("b"))
    assert not round_.closes(1059.9)
    assert round_.closes(1060.0)


def test_without_a_quorum_the_round_waits_on_and_closes_with_the_update_that_completes_it() -> None:
    """A deadline alone never makes a model of too few sites."""
    round_ = make_round()
    round_.accept("1", update("a"))
    assert not round_.closes(1060.0)
    assert not round_.closes(math.inf)
    round_.accept("2", update("b"))
    assert round_.closes(2000.0)


def test_patience_is_the_time_to_the_deadline() -> None:
    """Whoever waits for updates knows how long; after the deadline only an update changes anything."""
    round_ = make_round()
    assert round_.patience(1010.0) == 50.0
    assert round_.patience(1060.0) is None
    assert round_.overdue(1060.0)
    assert not round_.overdue(1059.0)


def test_a_redelivery_is_told_from_a_second_update_of_the_same_site() -> None:
    """An update counts once by (job, round, site), whatever is redelivered or sent twice."""
    round_ = make_round()
    assert round_.judge("1", update("a")) is Verdict.FOLD
    round_.accept("1", update("a"))
    assert round_.judge("1", update("a")) is Verdict.REPEATED
    assert round_.judge("9", update("a")) is Verdict.DUPLICATE
    assert round_.judge("2", update("b")) is Verdict.FOLD


def test_updates_of_other_rounds_do_not_count() -> None:
    """A straggler's update is late; one from the future cannot come from this round's model."""
    round_ = make_round()
    assert round_.judge("1", update("a", number=1)) is Verdict.LATE
    assert round_.judge("1", update("a", number=3)) is Verdict.EARLY
    with pytest.raises(ValueError, match="cannot be accepted"):
        round_.accept("1", update("a", number=1))


def test_metrics_are_weighted_by_examples_over_the_sites_that_told_them() -> None:
    """A site without the metric, or with NaN, does not pull the mean."""
    round_ = make_round()
    round_.accept("1", update("a", num_examples=30, loss=1.0))
    round_.accept("2", update("b", num_examples=10, loss=2.0, accuracy=0.5))
    round_.accept("3", update("c", num_examples=99, loss=math.nan))
    assert round_.metrics() == {"loss": pytest.approx(1.25), "accuracy": pytest.approx(0.5)}
    assert round_.weight == 139


@given(
    arrivals=st.lists(
        st.tuples(
            st.sampled_from(("a", "b", "c", "d")),
            st.integers(min_value=1, max_value=3),
            st.sampled_from(("m1", "m2")),
            st.floats(min_value=0, max_value=20),
        ),
        max_size=30,
    )
)
def test_whatever_arrives_each_site_counts_at_most_once_and_a_closed_round_has_its_quorum(
    arrivals: list[tuple[str, int, str, float]],
) -> None:
    """For any sequence of deliveries: redelivered, doubled, late, early."""
    round_ = make_round(quorum=2, deadline=60)
    now = 1000.0
    first: dict[str, str] = {}
    for site, number, suffix, pause in arrivals:
        now += pause
        message = f"{site}-{number}-{suffix}"
        if round_.judge(message, update(site, number)) is Verdict.FOLD:
            round_.accept(message, update(site, number))
            first.setdefault(site, message)
    assert {site: entry.message for site, entry in round_.accepted.items()} == first
    assert list(round_.accepted) == list(first)
    if round_.closes(now):
        assert len(first) >= (2 if now >= 1060 else 3)
