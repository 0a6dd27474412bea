"""Which part of a body a conditional or partial request selects (RFC 9110, sections 13 and 14)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorbus.bus.server.ranges import (
    NotModified,
    Partial,
    PreconditionFailed,
    Selection,
    Unsatisfiable,
    Whole,
    select,
)

ETAG = '"abc"'


@pytest.mark.parametrize(
    ("value", "selected"),
    [
        ("bytes=0-9", Partial(0, 10)),
        ("bytes=90-", Partial(90, 100)),
        ("bytes=90-1000", Partial(90, 100)),
        ("bytes=-10", Partial(90, 100)),
        ("bytes=-1000", Partial(0, 100)),
        ("bytes=99-99", Partial(99, 100)),
        ("bytes=100-", Unsatisfiable()),
        ("bytes=-0", Unsatisfiable()),
        ("bytes=9223372036854775808-", Unsatisfiable()),
        ("bytes=5-3", Whole()),
        ("bytes=0-1,5-6", Whole()),
        ("bytes=-", Whole()),
        ("items=0-1", Whole()),
        ("bytes=" + "9" * 10_000 + "-", Whole()),
    ],
)
def test_ranges_of_a_hundred_bytes(value: str, selected: Selection) -> None:
    """One satisfiable range is cut to what there is; malformed and multiple ones select the whole."""
    assert select({"Range": value}, 100, ETAG) == selected


@pytest.mark.parametrize(
    ("headers", "selected"),
    [
        ({"If-Range": ETAG}, Partial(1, 3)),
        ({"If-Range": '"old"'}, Whole()),
        ({"If-Range": "Sat, 21 Nov 2026 22:00:00 GMT"}, Whole()),
        ({"If-Match": '"old"'}, PreconditionFailed()),
        ({"If-Match": f'"old", {ETAG}'}, Partial(1, 3)),
        ({"If-Match": "*"}, Partial(1, 3)),
        ({"If-None-Match": ETAG}, NotModified()),
        ({"If-None-Match": f"W/{ETAG}"}, NotModified()),
        ({"If-None-Match": '"old"'}, Partial(1, 3)),
    ],
)
def test_conditions_come_before_the_range(headers: dict[str, str], selected: Selection) -> None:
    """A resumed download never mixes two versions: the entity tag decides before the range does."""
    assert select({"Range": "bytes=1-2", **headers}, 100, ETAG) == selected


@given(st.text(max_size=40), st.integers(0, 2**63))
def test_any_header_selects_within_the_body(value: str, size: int) -> None:
    """Whatever a client sends, the selection lies within the body."""
    selected = select({"Range": value}, size, ETAG)
    if isinstance(selected, Partial):
        assert 0 <= selected.start < selected.end <= size
