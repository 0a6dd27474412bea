"""Rounds: when they close, and what counts. In virtual time."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorbus.aggregator.headers import DeclineHeaders, UpdateHeaders
from tensorbus.aggregator.job import JobSpec
from tensorbus.aggregator.rounds import Before, Round, Verdict

SITES = ("a", "b", "c")


def make_round(number: int = 2, before: Before | None = None, oldest: int = 1, **change: Any) -> Round:
    """Round 2 of 5, which began at 1000 s."""
    settings: dict[str, Any] = {"sites": 3, "rounds": 5, "quorum": 2, "deadline": 60.0} | change
    return Round(JobSpec(job="sft", **settings), number, 1000.0, before or Before(), oldest)


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
    assert [entry.headers.site for entry in round_.close(1060.0)] == ["a", "b"]
    assert not round_.closes(1060.0)


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
    assert round_.examples == 139


def test_a_share_of_the_sites_is_a_quorum_too() -> None:
    """80 % of five sites are four; of seven, six."""
    for sites, enough in ((5, 4), (7, 6), (1, 1)):
        round_ = make_round(sites=sites, quorum="80%")
        assert round_.enough == enough
        for site in range(enough):
            assert not round_.closes(2000.0)
            round_.accept(str(site), update(f"s{site}"))
        assert round_.closes(2000.0)


def test_a_site_that_declines_or_leaves_is_not_waited_for() -> None:
    """Of three sites one sits the round out: the two others close it, without a deadline."""
    for leaves in (False, True):
        round_ = make_round()
        assert round_.decline(DeclineHeaders("c", 2, leaves))
        assert not round_.decline(DeclineHeaders("c", 2, leaves))
        round_.accept("1", update("a"))
        assert not round_.closes(1000.0)
        round_.accept("2", update("b"))
        assert round_.closes(1000.0)
        assert round_.left == ({"c"} if leaves else set())


def test_a_site_that_leaves_when_it_has_answered_counts_and_is_not_awaited_again() -> None:
    """Its word comes behind its update; heard again later, it says nothing of a site that came back."""
    round_ = make_round()
    round_.accept("1", update("c"))
    assert round_.decline(DeclineHeaders("c", 2, leaves=True))
    assert not round_.decline(DeclineHeaders("c", 2, leaves=True))
    assert (round_.count, round_.expected, round_.left) == (1, 3, {"c"})
    heard_again = make_round(3, before=Before(answers={("c", 2)}))
    assert heard_again.decline(DeclineHeaders("c", 2, leaves=True))
    came_back = make_round(4, before=Before(answers={("c", 2), ("c", 3)}))
    assert not came_back.decline(DeclineHeaders("c", 2, leaves=True))
    assert came_back.expected == 3


def test_a_quorum_that_is_a_count_holds_whoever_declines_and_a_share_is_of_those_that_do_not() -> None:
    """So a round of a fixed quorum may have to wait for somebody to change their mind."""
    counted, shared = make_round(quorum=2), make_round(quorum="100%")
    for round_ in (counted, shared):
        round_.decline(DeclineHeaders("b", 2))
        round_.decline(DeclineHeaders("c", 2))
        round_.accept("1", update("a"))
    assert shared.closes(1000.0)
    assert not counted.closes(9000.0)
    counted.accept("2", update("b"))  # it did after all
    assert counted.closes(1000.0)


def test_a_round_that_everybody_declines_waits_for_anybody() -> None:
    """No model is made of nothing."""
    round_ = make_round(quorum="50%")
    for site in SITES:
        round_.decline(DeclineHeaders(site, 2))
    assert not round_.closes(9000.0)
    round_.accept("1", update("d"))
    assert round_.closes(1000.0)


def test_a_site_that_left_is_missed_in_later_rounds_too_until_it_sends_something() -> None:
    """What earlier rounds know is passed on."""
    round_ = make_round(before=Before(sites={"a", "b", "c"}, left={"c"}))
    assert round_.expected == 2
    round_.accept("1", update("c"))
    assert round_.expected == 3
    assert round_.left == set()


def test_where_there_are_more_sites_than_are_needed_others_step_in_for_one_that_declines() -> None:
    """Three are needed and four are known: one may decline, and three are waited for still."""
    round_ = make_round(before=Before(sites={"a", "b", "c", "d"}))
    round_.decline(DeclineHeaders("a", 2))
    assert round_.expected == 3
    round_.decline(DeclineHeaders("b", 2))
    assert round_.expected == 2


def test_words_of_other_rounds_say_nothing_but_that_a_site_has_left() -> None:
    """A decline is of one round; leaving is for good."""
    round_ = make_round()
    assert not round_.decline(DeclineHeaders("a", 1))
    assert not round_.decline(DeclineHeaders("a", 3, leaves=True))
    assert round_.decline(DeclineHeaders("a", 1, leaves=True))


def test_a_late_update_counts_less_and_only_if_its_model_is_still_there() -> None:
    """(1 + d) to the power of -alpha, for a site that is d rounds behind; up to ``staleness`` rounds."""
    round_ = make_round(number=5, oldest=2, staleness=3, alpha=0.5)
    assert round_.judge("1", update("a", 1)) is Verdict.LATE
    assert round_.weight_of(update("a", 5, 8)) == 8
    assert round_.weight_of(update("a", 2, 8)) == 4
    assert round_.accept("1", update("a", 2, 8)).weight == 4
    assert round_.accept("2", update("a", 5, 8)).weight == 8  # its update of this round counts as well
    assert (round_.count, round_.weight, round_.behind) == (1, 12, [3, 0])
    assert make_round(number=5, oldest=3, staleness=3).judge("1", update("a", 2)) is Verdict.LATE


def test_what_went_into_an_earlier_model_is_not_counted_again() -> None:
    """The very message is known; another one of the same site and version is a duplicate."""
    before = Before(messages={"1"}, answers={("a", 1)})
    round_ = make_round(before=before, staleness=1)
    assert round_.judge("1", update("a", 1)) is Verdict.COUNTED
    assert round_.judge("2", update("a", 1)) is Verdict.DUPLICATE
    assert round_.judge("3", update("b", 1)) is Verdict.FOLD


def test_a_buffered_round_closes_with_so_many_updates_whoever_they_are_from() -> None:
    """FedBuff: one site may be in with several versions."""
    round_ = make_round(number=3, mode="buffered", buffer=3, staleness=2)
    for message, version in (("1", 1), ("2", 2), ("3", 3)):
        assert not round_.closes(1000.0)
        round_.accept(message, update("a", version))
    assert round_.closes(1000.0)
    assert round_.judge("4", update("a", 2)) is Verdict.DUPLICATE


def test_a_site_that_was_not_drawn_does_not_count() -> None:
    """About half of a thousand sites are drawn, others in each round, and everybody agrees on who."""
    drawn = {
        number: {
            f"s{site}"
            for site in range(1000)
            if make_round(number, select=0.5).judge(str(site), update(f"s{site}", number)) is Verdict.FOLD
        }
        for number in (2, 3)
    }
    assert all(400 < len(sites) < 600 for sites in drawn.values())
    assert 150 < len(drawn[2] & drawn[3]) < 350
    one = next(iter(set(map("s{}".format, range(1000))) - drawn[2]))
    assert make_round(select=0.5).judge("1", update(one)) is Verdict.UNDRAWN


def test_others_step_in_where_too_few_were_drawn() -> None:
    """Twice as many after each deadline, so that in the end everybody may; a round knows when."""
    sites = [f"s{site}" for site in range(1000)]
    round_ = make_round(select=0.1, deadline=1000.0)
    drawn = [
        sum(round_.judge("1", update(site), now) is Verdict.FOLD for site in sites)
        for now in (1000.0, 1990.0, 2000.0, 3000.0, 4000.0, 5000.0)
    ]
    assert drawn[0] == drawn[1] and 50 < drawn[0] < 150
    assert drawn == sorted(drawn) and drawn[-1] == 1000
    assert 150 < drawn[2] < 250 and 330 < drawn[3] < 470
    assert {round_.drawn_in(site, 1990.0) for site in sites} == {0.0, 10.0, 1010.0, 2010.0, 3010.0}
    for site in sites:
        wait = round_.drawn_in(site, 1990.0)
        assert round_.judge("1", update(site), 1990.0 + wait) is Verdict.FOLD
    round_.pause(1010.0)
    assert sum(round_.judge("1", update(site), 9000.0) is Verdict.FOLD for site in sites) == drawn[0]


def test_a_paused_round_does_not_close_and_its_deadline_moves_on() -> None:
    """All are in, and it waits; with 20 s to go before the pause there are 20 s to go after it."""
    round_ = make_round()
    for site in SITES[:2]:
        round_.accept(site, update(site))
    round_.pause(1040.0)
    round_.pause(1050.0)
    assert not round_.closes(9000.0)
    assert round_.patience(1050.0) is None
    round_.resume(5000.0)
    assert not round_.closes(5019.0)
    assert round_.patience(5000.0) == 20.0
    assert round_.closes(5020.0)


def test_a_round_that_lost_an_update_after_it_closed_is_open_again() -> None:
    """The reducer could not use it; somebody else may step in."""
    round_ = make_round()
    for site in SITES:
        round_.accept(site, update(site))
    round_.close(1000.0)
    with pytest.raises(ValueError, match="cannot be accepted"):
        round_.accept("4", update("d"))
    round_.drop("b")
    assert not round_.closes(1000.0)
    round_.accept("9", update("b"))
    assert [entry.message for entry in round_.close(1000.0)] == ["a", "c", "9"]


ARRIVALS = st.lists(
    st.tuples(
        st.sampled_from(("a", "b", "c", "d")),
        st.integers(min_value=1, max_value=4),
        st.sampled_from(("m1", "m2", "decline", "leave", "pause", "resume", "drop")),
        st.floats(min_value=0, max_value=20),
    ),
    max_size=40,
)


@given(
    arrivals=ARRIVALS,
    quorum=st.sampled_from((1, 2, 3, "50%", "100%")),
    staleness=st.integers(min_value=0, max_value=2),
    buffer=st.sampled_from((None, 3)),
)
def test_whatever_happens_a_round_closes_once_with_its_quorum_and_each_answer_counted_once(
    arrivals: list[tuple[str, int, str, float]], quorum: int | str, staleness: int, buffer: int | None
) -> None:
    """Redelivered, doubled, late, early, declined, left, paused and dropped, at any times."""
    mode = "sync" if buffer is None else "buffered"
    before = Before(messages={"b-2-m1"}, answers={("b", 2)}, sites={"b"})
    round_ = make_round(3, before, quorum=quorum, staleness=staleness, mode=mode, buffer=buffer, deadline=60)
    now = 1000.0
    first: dict[tuple[str, int], str] = {}
    closed: list[str] = []
    for site, number, what, pause in arrivals:
        now += pause
        message = f"{site}-{number}-{what}"
        match what:
            case "decline" | "leave":
                round_.decline(DeclineHeaders(site, number, what == "leave"))
            case "pause":
                round_.pause(now)
            case "resume":
                round_.resume(now)
            case "drop":
                if (site, number) in first and not round_.closed:
                    round_.drop(first.pop((site, number)))
            case _:
                if round_.judge(message, update(site, number)) is Verdict.FOLD and not round_.closed:
                    round_.accept(message, update(site, number))
                    first[site, number] = message
        if round_.closes(now):
            assert not round_.paused
            roster = round_.close(now)
            closed.append(what)
            sites = {entry.headers.site for entry in roster}
            counted = len(roster) if buffer else len(sites)
            assert counted >= (quorum if isinstance(quorum, int) else 1)
            away = round_.declined | round_.left
            if now < round_.opened + 60 and isinstance(quorum, int):
                assert counted >= max(quorum, 3 if buffer else 3 - len(away))
    assert len(closed) <= 1
    assert {key: entry.message for key, entry in round_.accepted.items()} == first
    assert list(round_.accepted) == list(first)
    assert all(3 - staleness <= number <= 3 for _, number in first)
    assert ("b", 2) not in first


def test_a_round_that_waits_says_what_is_lacking() -> None:
    """Who is in, who sits out, who has left, and whether anybody else is expected at all."""
    round_ = make_round()
    round_.accept("1", update("a"))
    round_.decline(DeclineHeaders("b", 2))
    assert round_.lacking() == "1 of the 2 updates that are needed are in; b sit it out"
    round_.decline(DeclineHeaders("c", 2, leaves=True))
    assert round_.lacking().endswith(
        "b sit it out; c have left; no other site is expected: it waits for one that comes, or comes back"
    )


def test_deadlines_are_counted_and_wait_while_the_job_is_paused() -> None:
    """However short they are."""
    round_ = make_round()
    assert [round_.deadlines(at) for at in (900.0, 1059.0, 1060.0, 1180.0)] == [0, 0, 1, 3]
    round_.pause(1030.0)
    assert round_.deadlines(1180.0) == 0
    round_.resume(1180.0)
    assert round_.deadlines(1180.0) == 0
    assert make_round(deadline=5e-324).deadlines(2000.0) > 0


def test_a_round_that_a_reducer_cannot_do_with_waits_for_one_update_more() -> None:
    """Also after its deadline, and though every expected site is in."""
    round_ = make_round(sites=2)
    for site in ("a", "b"):
        round_.accept(site, update(site))
    round_.close(1000.0)
    round_.need_more()
    assert not round_.closes(math.inf)
    round_.accept("c", update("c"))
    assert round_.closes(1000.0)


def test_a_site_that_came_back_is_back_when_all_it_said_is_heard_again() -> None:
    """After a restart deliveries come again, in their order: it left, sent its update, and left once more."""
    round_ = make_round(before=Before(left=frozenset({"a"})))
    round_.accept("1", update("a"), weight=10.0)
    left = DeclineHeaders("a", 2, leaves=True)
    assert round_.decline(left)
    assert round_.judge("1", update("a")) is Verdict.REPEATED
    round_.heard_again("a")
    assert round_.left == set()
    assert round_.decline(left)


def test_of_a_buffer_only_as_many_are_expected_as_there_are_sites() -> None:
    """By the job, and by who left; a quorum that is a count is never undercut."""
    settings: dict[str, Any] = {"mode": "buffered", "buffer": 5, "staleness": 2}
    assert make_round(**settings).expected == 3
    round_ = make_round(before=Before(sites=frozenset("abcdefg")), **settings)
    assert round_.expected == 5
    for site in "abc":
        round_.decline(DeclineHeaders(site, 2, leaves=True))
    assert round_.expected == 4
    settings["quorum"] = 3
    round_ = make_round(**settings)
    for site in "ab":
        round_.decline(DeclineHeaders(site, 2, leaves=True))
    round_.accept("c", update("c"))
    assert not round_.closes(math.inf)
