"""What a right on a filter allows, and what it does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorbus.bus.access import NO_RIGHTS, OWNER_RIGHTS, Rights
from tensorbus.bus.topics import covers, intersection, matches
from tensorbus.errors import InvalidName, InvalidRequest, LimitExceeded

FILTERS = st.lists(st.sampled_from(["a", "b", "*", ">"]), min_size=1, max_size=4).map(
    lambda tokens: ".".join(
        token if token != ">" or place == len(tokens) - 1 else "*" for place, token in enumerate(tokens)
    )
)
TOPICS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=5).map(".".join)


@given(FILTERS, FILTERS, TOPICS)
def test_an_intersection_selects_what_both_select(one: str, other: str, topic: str) -> None:
    """The intersection of two filters matches exactly the topics that both of them match."""
    both = intersection(one, other)
    assert (both is not None and matches(both, topic)) == (matches(one, topic) and matches(other, topic))


@pytest.mark.parametrize(
    ("given", "wanted", "allowed"),
    [
        ("fl.a.updates", "fl.a.updates", True),
        ("fl.a.updates", "fl.b.updates", False),
        ("fl.*.updates", "fl.b.updates", True),
        ("fl.*.updates", "fl.*.updates", True),
        ("fl.a.updates", "fl.*.updates", False),
        ("fl.a.>", "fl.>", False),
        ("fl.>", "fl.a.>", True),
        ("fl.>", "fl", False),
        (">", "anything.at.all", True),
        ("fl.*", "fl.a.b", False),
    ],
)
def test_a_right_holds_where_its_filter_covers(given: str, wanted: str, allowed: bool) -> None:
    """A topic, or a filter, is allowed where one filter of the token selects all of it."""
    assert Rights(subscribe=(given,)).allow("subscribe", wanted) is allowed


def test_rights_are_apart_but_for_admin() -> None:
    """To publish is not to read, nor the other way round; admin of a topic may do both."""
    writer = Rights(publish=("a.>",))
    assert writer.allow("publish", "a.b") and not writer.allow("subscribe", "a.b")
    reader = Rights(subscribe=("a.>",))
    assert reader.allow("subscribe", "a.b") and not reader.allow("publish", "a.b")
    admin = Rights(admin=("a.>",))
    assert admin.allow("publish", "a.b") and admin.allow("subscribe", "a.b") and admin.allow("admin", "a.b")
    assert not admin.allow("admin", "b") and not admin.allow("admin", ">")
    assert not writer.allow("admin", "a.b") and not reader.allow("admin", "a.b")
    assert OWNER_RIGHTS.allow("admin", ">") and not NO_RIGHTS.allow("publish", "a")


@given(st.lists(FILTERS, max_size=4), FILTERS, TOPICS)
def test_what_may_be_seen_of_a_filter(rights: list[str], wanted: str, topic: str) -> None:
    """``within`` selects the topics of a filter on which the right is given, and no other."""
    reader = Rights(subscribe=tuple(rights))
    seen = reader.within("subscribe", wanted)
    expected = matches(wanted, topic) and reader.allow("subscribe", topic)
    assert any(matches(pattern, topic) for pattern in seen) == expected
    assert not any(one is not other and covers(one, other) for one in seen for other in seen)


@pytest.mark.parametrize("pattern", ["", "a..b", ">.a", "a b", "../etc", "a/b", "a\0"])
def test_malformed_filters_are_refused(pattern: str) -> None:
    """A right on something that is no filter cannot be given."""
    with pytest.raises(InvalidName):
        Rights(publish=(pattern,))


def test_what_came_as_json_is_checked() -> None:
    """The lists have to be lists of texts, and not too long."""
    assert Rights.from_json({"publish": ["b", "a", "b"]}) == Rights(publish=("a", "b"))
    for wrong in ("a", [1], {"a": 1}, [["a"]]):
        with pytest.raises(InvalidRequest):
            Rights.from_json({"admin": wrong})
    with pytest.raises(LimitExceeded):
        Rights.from_json({"admin": [f"a.{number}" for number in range(257)]})
