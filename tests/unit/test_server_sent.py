"""Server-sent events: the same events, however their bytes are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorbus.bus.client import server_sent
from tensorbus.bus.client.server_sent import ServerSentEvent, ServerSentEvents
from tensorbus.errors import LimitExceeded

SENT = (
    b'retry: 1000\n\nevent: status\ndata: {"a": 1}\n\n: heartbeat\n\nid: 7\r\ndata: one\r\ndata:two\r\n\r\n'
    b"event: empty\n\nevent: problem\ndata: \xc3\xbc\n\ndata: never ended"
)
EVENTS = [
    ServerSentEvent("status", '{"a": 1}'),
    ServerSentEvent("message", "one\ntwo"),
    ServerSentEvent("problem", "ü"),
]


@given(st.lists(st.integers(0, len(SENT)), max_size=8))
def test_events_are_the_same_however_they_come(cuts: list[int]) -> None:
    """Names, several lines of data, both line ends; comments, and events without data, are passed over."""
    places = [0, *sorted(cuts), len(SENT)]
    parser = ServerSentEvents()
    came = [event for a, b in pairwise(places) for event in parser.feed(SENT[a:b])]
    assert came == EVENTS


def test_an_event_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the sender does, no more than the limit is kept."""
    monkeypatch.setattr(server_sent, "MAX_EVENT_BYTES", 1000)
    many_lines, one_line = ServerSentEvents(), ServerSentEvents()
    for _ in range(9):
        many_lines.feed(b"data: " + b"x" * 94 + b"\n")
        one_line.feed(b"x" * 100)
    with pytest.raises(LimitExceeded):
        many_lines.feed(b"data: " + b"x" * 200 + b"\n")
    with pytest.raises(LimitExceeded):
        one_line.feed(b"x" * 200)
