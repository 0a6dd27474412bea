"""With what weight the base goes into each element, when updates are changes in some places only."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorbus.aggregator.coverage import (
    CURRENT,
    MAX_BASES,
    MAX_PIECES,
    MAX_PIECES_OF_ALL,
    Coverage,
    Weights,
)
from tensorbus.errors import LimitExceeded

LENGTH = 60
Slices = list[tuple[int, bool]]
updates = st.lists(
    st.tuples(
        st.floats(0.1, 1e6),
        st.lists(st.tuples(st.integers(1, 20), st.booleans()), min_size=1, max_size=20),
    ),
    max_size=6,
)


def entered(found: list[tuple[float, Slices]]) -> tuple[Coverage, list[float]]:
    """A coverage, and the weight of each element as it is with one number an element."""
    coverage, expected = Coverage(), [0.0] * LENGTH
    for weight, slices in found:
        at = 0
        for count, is_change in slices:
            stop = min(at + count, LENGTH)
            if is_change and at < stop:
                coverage.add("w", at, stop, weight)
                for place in range(at, stop):
                    expected[place] += weight
            at = stop
        coverage.end_update()
    return coverage, expected


@settings(deadline=None)
@given(updates, st.lists(st.integers(1, 25), min_size=1, max_size=20))
def test_every_element_has_the_weight_of_the_updates_that_are_changes_there(
    found: list[tuple[float, Slices]], cuts: list[int]
) -> None:
    """However the updates and the base are cut; to the last bit, in the order of the updates."""
    coverage, expected = entered(found)
    got = [0.0] * LENGTH
    at = 0
    while at < LENGTH:
        stop = min(LENGTH, at + cuts[at % len(cuts)])
        for start, end, weight in coverage.pieces("w", at, stop):
            assert at <= start < end <= stop
            for place in range(start, end):
                got[place] += float(weight)
        at = stop
    assert got == expected
    assert bool(coverage) == any(expected)
    assert list(coverage.pieces("other", 0, LENGTH)) == []


def test_what_is_a_change_everywhere_is_one_piece() -> None:
    """However many slices and updates: it costs nothing, and a slice of the base is added in one go."""
    coverage = Coverage()
    for weight, step in ((0.1, 7), (0.2, 11), (0.7, 100)):
        for at in range(0, 1000, step):
            coverage.add("w", at, min(1000, at + step), weight)
        coverage.end_update()
    assert list(coverage.pieces("w", 0, 1000)) == [(0, 1000, 0.1 + 0.2 + 0.7)]
    assert list(coverage.pieces("w", 300, 400)) == [(300, 400, 0.1 + 0.2 + 0.7)]
    assert list(coverage.pieces("w")) == [(0, 1000, 0.1 + 0.2 + 0.7)]


def test_exact_weights_are_the_same_in_any_order() -> None:
    """Floats are not; so a deterministic job counts in fractions, and its shares are rounded once."""
    parts = [(0.1, 0, 60), (1e17, 10, 50), (1 / 3, 0, 30), (-1e17, 10, 50), (0.7, 5, 60)]
    found: list[list[tuple[int, int, float]]] = []
    for order in (parts, parts[::-1], sorted(parts)):
        weights = Weights(exact=True)
        for weight, start, stop in order:
            number = weights.number(weight)
            weights.count(["w"], abs(number))
            weights.cover(CURRENT, "w", start, stop, number)
            weights.end_update()
        found.append(
            [(at, at + 1, share) for at in range(60) for _, _, share in weights.shares("w", at, at + 1)]
        )
    assert found[0] == found[1] == found[2]
    exact = (Fraction(0.1) + Fraction(1 / 3)) / sum(abs(Fraction(weight)) for weight, _, _ in parts)
    assert found[0][0] == (0, 1, float(exact))


def test_what_cancels_out_is_not_read() -> None:
    """An earlier model that goes in with no weight need not be there."""
    weights = Weights()
    for weight in (2.5, -2.5):
        weights.cover("message:x", "w", 0, 10, weight)
        weights.end_update()
    assert weights.late() == []
    assert weights.pieces("message:x", "w", 0, 10) == []


def test_changes_from_too_many_models_are_refused() -> None:
    """Each is one more that has to be kept, and read."""
    weights = Weights()
    for number in range(MAX_BASES + 1):
        weights.cover(f"message:{number}", "w", 0, 10, 1.0)
    with pytest.raises(LimitExceeded, match=str(MAX_BASES)):
        weights.cover("message:x", "w", 0, 10, 1.0)


def crumbs(weights: Weights, pieces: int, first: int = 0, base: str = CURRENT) -> None:
    """An update that is a change at every other element."""
    for at in range(first, first + 2 * pieces, 2):
        weights.cover(base, "w", at, at + 1, 1.0)
    weights.end_update()


def test_an_update_in_crumbs_is_refused() -> None:
    """Every other element a change: what has to be remembered of it has a limit."""
    with pytest.raises(LimitExceeded, match=str(MAX_PIECES)):
        crumbs(Weights(), MAX_PIECES)


def test_an_update_in_crumbs_of_two_models_has_no_more() -> None:
    """Of a late one, the model that it comes from and the current one both go in."""
    weights = Weights()

    def fold() -> None:
        for base in (CURRENT, "message:x"):
            for at in range(0, MAX_PIECES + 10, 2):
                weights.cover(base, "w", at, at + 1, 1.0)

    with pytest.raises(LimitExceeded, match=str(MAX_PIECES)):
        fold()


def test_what_one_update_takes_of_it_leaves_the_others_theirs() -> None:
    """Ten that go to the limit of one, and an honest one after them; a region's sums are of many."""
    weights = Weights()
    for place in range(10):
        crumbs(weights, MAX_PIECES // 2 - 1, first=place * 10 * MAX_PIECES)
    weights.cover(CURRENT, "v", 0, 10, 1.0)
    weights.end_update()
    assert weights.pieces(CURRENT, "v", 0, 10) == [(0, 10, 1.0)]
    weights.begin_sums()
    crumbs(weights, MAX_PIECES, first=200 * MAX_PIECES)


def test_all_updates_together_have_a_limit_too() -> None:
    """However many there are, the pieces take tens of MB at most."""
    weights = Weights()

    def fold() -> None:
        for place in range(MAX_PIECES_OF_ALL // MAX_PIECES + 2):
            first = place * 10 * MAX_PIECES
            crumbs(weights, MAX_PIECES // 2 - 1, first, base=f"message:{place % 4}")

    with pytest.raises(LimitExceeded, match=str(MAX_PIECES_OF_ALL)):
        fold()
