"""Rosters and orders: what an aggregator writes down, and what it makes of it after a restart."""

from __future__ import annotations

import pytest

from tensorbus.aggregator.control import Order, paused_for
from tensorbus.aggregator.headers import UpdateHeaders
from tensorbus.aggregator.records import Entry, Ledger, Roster
from tensorbus.aggregator.rounds import Accepted
from tensorbus.aggregator.switch import Switch
from tensorbus.errors import InvalidRequest, JobCancelled


def test_a_roster_survives_the_way_through_its_bytes_to_the_last_bit_of_a_weight() -> None:
    """The weights of late updates are no round numbers."""
    weight = 812 * 3**-0.5
    accepted = [Accepted("ab" * 16, UpdateHeaders("a", 2, 812), weight)]
    roster = Roster.of(4, 2, accepted, {"z", "b"})
    assert roster == Roster(4, 2, (Entry("ab" * 16, "a", 2, weight),), ("b", "z"))
    assert Roster.parse(4, 2, roster.to_bytes()) == roster


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"updates": 5, "left": []}',
        b'{"updates": [[]], "left": []}',
        b'{"updates": [["m", "a", "1", 1]], "left": []}',
        b'{"updates": [["m", "a", 1, NaN]], "left": []}',
        b'{"updates": [["m", "a", 1, -1]], "left": []}',
        b'{"updates": [], "left": [5]}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_what_is_no_roster_is_refused(body: bytes) -> None:
    """It lies at a broker, where others may write too."""
    with pytest.raises(InvalidRequest):
        Roster.parse(1, 1, body)


def test_a_round_knows_what_earlier_ones_counted_and_who_has_left() -> None:
    """Of its own roster, and of later ones, it knows nothing."""
    ledger = Ledger(
        rosters={
            1: Roster(1, 1, (Entry("m1", "a", 1, 1.0), Entry("m2", "b", 1, 1.0)), ("z",)),
            2: Roster(2, 1, (Entry("m3", "a", 2, 1.0),), ("b",)),
            3: Roster(3, 1, (Entry("m4", "a", 3, 1.0),)),
        }
    )
    before = ledger.before(3)
    assert before.messages == {"m1", "m2", "m3"}
    assert before.answers == {("a", 1), ("b", 1), ("a", 2)}
    assert (before.sites, before.left) == ({"a", "b"}, {"b"})
    assert ledger.before(1) == Ledger().before(1)


def test_the_time_for_which_a_round_was_paused_does_not_count() -> None:
    """Only what lies after its begin; a pause that goes on is told apart."""
    orders = [Order("pause", 90), Order("pause", 95), Order("resume", 110), Order("pause", 120)]
    assert paused_for(orders, opened=100, now=150) == (10, 120)
    assert paused_for(orders[:3], opened=100, now=150) == (10, None)
    assert paused_for(orders[:3], opened=200, now=250) == (0, None)
    assert paused_for([Order("resume", 5)], opened=0, now=10) == (0, None)
    assert paused_for(orders[:1], opened=100, now=150) == (0, 100)


def test_the_last_order_holds_but_nothing_undoes_a_cancellation() -> None:
    """Each once, in the order of the broker's log, however often it is heard."""
    switch = Switch([Order("pause", 1, seq=4), Order("resume", 2, seq=7)])
    switch.turn(Order("pause", 1, seq=4))
    assert not switch.paused
    switch.turn(Order("pause", 3, seq=9))
    assert switch.paused
    switch.check()
    switch.turn(Order("cancel", 4, seq=10))
    switch.turn(Order("resume", 5, seq=11))
    with pytest.raises(JobCancelled):
        switch.check()
