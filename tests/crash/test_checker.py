"""The checker of histories finds each broken promise, and none where there is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from crashing.checker import check
from crashing.history import Event, History, read_events

GOOD = (
    Event("publish", "p", 1, key="k1", topic="t", sha256="aa", size=2),
    Event("stored", "p", 2, key="k1", topic="t", id="m1", seq=1, size=2),
    Event("publish", "p", 3, key="k2", topic="t", sha256="bb", size=3),
    # The answer was lost, and the second request got the same receipt.
    Event("stored", "p", 5, key="k2", topic="t", id="m2", seq=2, size=3),
    Event("publish", "q", 5, key="k3", topic="t", sha256="cc", size=3),
    Event("handed", "w", 6, key="k1", topic="t", id="m1", seq=1, consumer="c", attempt=1, asked=5.5),
    Event("read", "w", 7, key="k1", topic="t", id="m1", consumer="c", attempt=1, sha256="aa", size=2),
    Event("nak", "w", 8, id="m1", consumer="c", attempt=1),
    Event("naked", "w", 9, id="m1", consumer="c", attempt=1),
    Event("handed", "w", 10, key="k1", topic="t", id="m1", seq=1, consumer="c", attempt=2, asked=9.5),
    Event("ack", "w", 11, id="m1", consumer="c", attempt=2),
    Event("acked", "w", 12, id="m1", consumer="c", attempt=2),
    Event("handed", "v", 13, key="k2", topic="t", id="m2", seq=2, consumer="c", attempt=1, asked=12.5),
    Event("term", "v", 14, id="m2", consumer="c", attempt=1),
    Event("termed", "v", 15, id="m2", consumer="c", attempt=1),
    Event("found", "audit", 20, key="k1", topic="t", id="m1", seq=1, sha256="aa", size=2),
    Event("found", "audit", 20, key="k2", topic="t", id="m2", seq=2, sha256="bb", size=3),
    Event("consumer", "audit", 21, consumer="c", filter="t", position=2, backlog=0, pending=0),
)

DEAD = Event(
    "found", "audit", 22, key="k2", topic="t", id="m9", seq=9, sha256="bb", size=3, consumer="c", dead="m2"
)
STRICT = replace(GOOD[-1], most=2)


LOST = [event for event in GOOD if (event.what, event.id) != ("found", "m1")]
NEWER = [Event("stored", "p", 5, key=f"n{seq}", topic="t", id=f"n{seq}", seq=seq, size=0) for seq in (3, 4)]
KEPT = [
    event
    for seq in (3, 4)
    for event in (
        Event("publish", "p", 4, key=f"n{seq}", topic="t", sha256="", size=0),
        Event("found", "audit", 20, key=f"n{seq}", topic="t", id=f"n{seq}", seq=seq, sha256="", size=0),
        Event("ack", "w", 16, id=f"n{seq}", consumer="c", attempt=1),
    )
]
REFUSED = Event("refused", "p", 15, key="k3", topic="t")


def policy(**config: object) -> Event:
    """One of the topic."""
    return Event("policy", "harness", 0, topic="t", text=json.dumps({"filter": "t", **config}))


QUEUE = policy(retention="workqueue")
EMPTIED = [event for event in GOOD if event.what != "found"]
LIMIT = policy(max_messages=2)


def promises(*events: Event) -> set[str]:
    """The promises that a history breaks."""
    return {violation.promise for violation in check(events)}


def without(*whats: str) -> list[Event]:
    """The good history without some events."""
    return [event for event in GOOD if event.what not in whats]


def changed(choose: Callable[[Event], bool], **fields: object) -> list[Event]:
    """The good history with some events changed."""
    return [replace(event, **fields) if choose(event) else event for event in GOOD]  # type: ignore[arg-type]


def test_a_good_history_is_good() -> None:
    """No false alarm: retries, naks and refusals are part of a day's work."""
    assert check(GOOD) == []
    assert check([*GOOD[:-1], STRICT, DEAD]) == []


def test_an_intent_binds_nobody() -> None:
    """What was never acknowledged may be there or not; what somebody meant to delete may be gone."""
    begun = Event("publish", "p", 15, key="k4", topic="t", sha256="dd", size=1)
    stored = replace(DEAD, id="m4", key="k4", sha256="dd", size=1, consumer=None, dead=None)
    assert promises(*GOOD, begun) == set()
    assert promises(*GOOD, begun, stored, Event("ack", "w", 16, id="m4", consumer="c", attempt=1)) == set()
    gone = [event for event in GOOD if (event.what, event.id) != ("found", "m1")]
    assert promises(*gone, Event("delete", "p", 19, id="m1")) == set()


def test_what_a_policy_removes_is_not_lost() -> None:
    """Of a queue what was settled is gone, under limits what is older than all that is kept."""
    assert promises(*EMPTIED, QUEUE, DEAD) == set()
    assert promises(*EMPTIED, policy(retention="interest"), DEAD) == set()
    # Perhaps the broker heard it, though its answer was lost.
    unheard = [event for event in EMPTIED if event.what != "acked"]
    assert promises(*unheard, QUEUE, DEAD) == set()
    assert promises(*EMPTIED, *NEWER, *KEPT, LIMIT) == set()
    assert promises(*GOOD, REFUSED) == set()


@pytest.mark.parametrize(
    ("promise", "events"),
    [
        ("no acknowledged message lost", [*EMPTIED, policy(max_messages=2)]),
        ("no acknowledged message lost", [*LOST, *NEWER, *KEPT, policy(max_messages=4)]),
        ("no acknowledged message lost", [*GOOD[:16], *GOOD[17:], *NEWER, *KEPT, LIMIT]),
        ("no acknowledged message lost", [*EMPTIED, *NEWER, *KEPT, policy(max_messages=2, discard="new")]),
        (
            "no acknowledged message lost",
            [*(event for event in EMPTIED if event.what not in ("ack", "acked")), QUEUE, DEAD],
        ),
        ("what everybody has settled is gone", [*GOOD, QUEUE, DEAD]),
        ("no more than its policy says", [*GOOD, *NEWER, *KEPT, policy(max_messages=3)]),
        ("a refused message becomes a dead letter", [*EMPTIED, QUEUE]),
        ("a refusal is no acknowledgement", [*GOOD, REFUSED, replace(GOOD[15], key="k3", id="m3", seq=3)]),
        ("a refusal is no acknowledgement", [*GOOD, REFUSED, replace(GOOD[1], key="k3", id="m3", seq=3)]),
        (
            "no acknowledged message lost",
            [event for event in GOOD if (event.what, event.id) != ("found", "m1")],
        ),
        ("no acknowledged message lost", changed(lambda e: (e.what, e.id) == ("found", "m1"), seq=7)),
        ("none delivered corrupt", changed(lambda e: (e.what, e.id) == ("found", "m1"), sha256="ab")),
        ("none delivered corrupt", changed(lambda e: (e.what, e.id) == ("found", "m1"), size=1)),
        ("none delivered corrupt", changed(lambda e: e.what == "read", sha256="ab")),
        ("none delivered corrupt", [*GOOD, Event("unreadable", "w", 9, id="m1", text="CRC")]),
        ("nothing that nobody sent", [*GOOD, replace(GOOD[15], key="k9", id="m7", seq=4)]),
        ("each key stored once", [*GOOD, replace(GOOD[15], id="m7", seq=4)]),
        ("each key stored once", [*GOOD, replace(GOOD[1], id="m7", seq=4, at=3.0)]),
        ("each key stored once", [*GOOD, replace(GOOD[5], id="m7", seq=4, asked=3.0)]),
        ("none delivered after an acknowledged ack", [*GOOD, replace(GOOD[9], attempt=3, asked=1.0)]),
        ("none delivered after an acknowledged ack", [*GOOD, replace(GOOD[9], attempt=1, asked=12.5)]),
        ("none delivered after an acknowledged ack", [*GOOD, replace(GOOD[12], attempt=2, asked=1.0)]),
        ("each hand-over counts as an attempt", [*GOOD, replace(GOOD[5], who="x")]),
        (
            "what is deleted is gone",
            [*GOOD, Event("delete", "p", 19, id="m1"), Event("deleted", "p", 19, id="m1")],
        ),
        ("what is deleted is gone", [*GOOD, Event("deleted", "p", 9.2, id="m1")]),
        ("a publisher's messages stay in order", [*GOOD, replace(GOOD[1], at=6.0, key="k3", id="m3", seq=1)]),
        ("delivered until somebody settles it", without("ack", "acked")),
        ("delivered until somebody settles it", changed(lambda e: e.what == "consumer", pending=1)),
        ("delivered until somebody settles it", changed(lambda e: e.what == "consumer", backlog=1)),
        ("consumers where they were", [*GOOD, replace(GOOD[-1], position=1, at=22.0)]),
        ("answers as specified", [*GOOD, Event("unexpected", "w", 9, text="500")]),
        ("nothing left behind", [*GOOD, Event("orphan", text="a file")]),
        ("a refused message becomes a dead letter", [*GOOD[:-1], STRICT]),
        ("one dead letter for a dead message", [*GOOD[:-1], STRICT, DEAD, replace(DEAD, id="m10", seq=10)]),
        ("an acknowledged message does not die", [*GOOD[:-1], STRICT, DEAD, replace(DEAD, dead="m1")]),
        ("none delivered corrupt", [*GOOD[:-1], STRICT, replace(DEAD, sha256="ab")]),
        ("no more attempts than allowed", [*GOOD[:-1], replace(STRICT, most=1), DEAD]),
    ],
)
def test_each_broken_promise_is_found(promise: str, events: list[Event]) -> None:
    """One event more, less or other than in a good history, and the checker says what it means."""
    assert promise in promises(*events)


def test_a_history_outlives_its_process(tmp_path: Path) -> None:
    """What was written is read back, from all files together, in the order of time."""
    for number, part in enumerate((GOOD[::2], GOOD[1::2])):
        history = History(tmp_path / f"{number}.jsonl")
        for event in part:
            history.add(event)
    events = read_events(tmp_path.glob("*.jsonl"))
    assert set(events) == set(GOOD)
    assert [event.at for event in events] == sorted(event.at for event in GOOD)
