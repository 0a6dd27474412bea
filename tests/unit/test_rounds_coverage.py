"""With what weight the base goes into each element, when updates are changes in some places only."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorbus.aggregator.coverage import MAX_PIECES, Coverage
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
                got[place] += weight
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
    coverage.clear()
    assert not coverage
    assert list(coverage.pieces("w", 0, 1000)) == []


def test_an_update_in_crumbs_is_refused() -> None:
    """Every other element a change: what has to be remembered of it has a limit."""
    coverage = Coverage()

    def fold() -> None:
        for at in range(0, 4 * MAX_PIECES, 2):
            coverage.add("w", at, at + 1, 1.0)

    with pytest.raises(LimitExceeded, match=str(MAX_PIECES)):
        fold()
