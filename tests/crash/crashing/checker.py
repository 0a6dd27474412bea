"""Judges a history: what the broker promised against what was seen. Pure; no broker, no clock, no files.

The order of things is taken from what they say of themselves, where that is possible, and not from clocks: a
delivery's attempts count up, so an acknowledgement of attempt 3 that the broker confirmed forbids attempt 4.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tensorbus.bus.topics import matches

from .history import Event


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken promise: which, and the events that show it."""

    promise: str
    text: str

    def __str__(self) -> str:
        return f"{self.promise}: {self.text}"


def check(events: Sequence[Event]) -> list[Violation]:
    """Every broken promise in a history whose end is an audit (``found`` and ``consumer`` events)."""
    history = _Sorted(events)
    rules = (
        _unexpected,
        _lost,
        _corrupt,
        _stored_twice,
        _deleted,
        _delivered_after_settlement,
        _out_of_order,
        _consumers,
        _dead_letters,
        _refused,
        _kept_too_long,
    )
    return [violation for rule in rules for violation in rule(history)]


Place = tuple[str, str]
"""A topic and an idempotency key; or a consumer and a message."""


class _Sorted:
    """The events by what they are about."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.by_what: dict[str, list[Event]] = defaultdict(list)
        for event in events:
            self.by_what[event.what].append(event)
        self.published: dict[Place, Event] = {}
        for event in self.by_what["publish"]:
            self.published.setdefault(_key(event), event)
        self.found = {event.id: event for event in self.by_what["found"]}
        self.to_be_deleted = {event.id for event in self.by_what["delete"]}
        self.policies: dict[str, dict[str, Any]] = {
            event.topic or "": json.loads(event.text or "{}") for event in self.by_what["policy"]
        }
        self.filters = {event.consumer or "": event.filter or ">" for event in self.by_what["consumer"]}
        self.letters = {
            (event.consumer or "", event.dead or "") for event in self.by_what["found"] if event.dead
        }
        self.topics: dict[str | None, str | None] = {}
        self.seqs: dict[str, set[int]] = defaultdict(set)
        for event in (*self.by_what["stored"], *self.by_what["handed"], *self.by_what["found"]):
            if event.dead is None:
                self.topics[event.id] = event.topic
                self.seqs[event.topic or ""].add(event.seq or 0)

    def __getitem__(self, what: str) -> list[Event]:
        return self.by_what[what]

    def policy(self, topic: str | None) -> dict[str, Any]:
        """The policy of a topic, empty without one."""
        found = (one for pattern, one in self.policies.items() if matches(pattern, topic or ""))
        return next(found, dict[str, Any]())

    def settled(self, *whats: str) -> set[Place]:
        """Consumer and message of some kinds of settlements, and of all dead letters."""
        return {_delivery(event) for what in whats for event in self.by_what[what]} | self.letters

    def settled_by_all(self, event: Event, settled: set[Place]) -> bool:
        """Whether every consumer that is handed a message is among those that have settled it."""
        interested = [name for name, pattern in self.filters.items() if matches(pattern, event.topic or "")]
        return all((name, event.id or "") in settled for name in interested)

    def may_be_gone(self, event: Event) -> bool:
        """Whether a policy may have removed an acknowledged message."""
        policy = self.policy(event.topic)
        if policy.get("retention", "limits") != "limits":
            # A worker that was killed had perhaps been heard.
            return self.settled_by_all(event, self.settled("ack", "acked", "term", "termed"))
        if policy.get("max_messages") is None or policy.get("discard", "old") != "old":
            return False
        newer = sum(seq > (event.seq or 0) for seq in self.seqs[event.topic or ""])
        older = [one for one in self.found.values() if one.topic == event.topic and one.dead is None]
        return newer >= policy["max_messages"] and all((one.seq or 0) > (event.seq or 0) for one in older)


def _key(event: Event) -> Place:
    return event.topic or "", event.key or ""


def _delivery(event: Event) -> Place:
    return event.consumer or "", event.id or ""


def _unexpected(history: _Sorted) -> Iterator[Violation]:
    for event in history["unexpected"]:
        yield Violation("answers as specified", f"{event.who} got {event.text}")
    for event in history["orphan"]:
        yield Violation("nothing left behind", event.text or "")


def _lost(history: _Sorted) -> Iterator[Violation]:
    for event in history["stored"]:
        if event.id in history.to_be_deleted:
            continue
        there = history.found.get(event.id)
        if there is None:
            if history.may_be_gone(event):
                continue
            text = f"{event.who} was told that {event.key} is stored as {event.id}; it is gone"
            yield Violation("no acknowledged message lost", text)
        elif (there.key, there.topic, there.seq) != (event.key, event.topic, event.seq):
            yield Violation("no acknowledged message lost", f"{event} became {there}")


def _corrupt(history: _Sorted) -> Iterator[Violation]:
    for event in (*history["read"], *history["found"]):
        if event.dead is not None:
            continue
        sent = history.published.get(_key(event))
        if sent is None:
            yield Violation("nothing that nobody sent", f"{event.id} has the key {event.key}")
        elif (sent.sha256, sent.size) != (event.sha256, event.size):
            text = f"{event.who} read {event.size} bytes {event.sha256} of {event.key}, sent were {sent}"
            yield Violation("none delivered corrupt", text)
    for event in history["unreadable"]:
        yield Violation("none delivered corrupt", f"{event.who} read {event.id}: {event.text}")


def _stored_twice(history: _Sorted) -> Iterator[Violation]:
    ids: dict[Place, set[tuple[str | None, int | None]]] = defaultdict(set)
    for event in (*history["stored"], *history["found"], *history["handed"]):
        if event.key is not None and event.dead is None:
            ids[_key(event)].add((event.id, event.seq))
    for (topic, key), found in ids.items():
        if len(found) > 1:
            yield Violation("each key stored once", f"{topic} {key} is {sorted(map(str, found))}")


def _deleted(history: _Sorted) -> Iterator[Violation]:
    gone = {event.id: event for event in history["deleted"]}
    for event in history["handed"]:
        if (deleted := gone.get(event.id)) is not None and (event.asked or 0) > deleted.at:
            text = f"{event.who} was handed {event.id}, asked for after its deletion was confirmed"
            yield Violation("what is deleted is gone", text)
    for name in gone:
        if name in history.found:
            yield Violation("what is deleted is gone", f"{name} is still listed")


def _delivered_after_settlement(history: _Sorted) -> Iterator[Violation]:
    handed: dict[Place, list[Event]] = defaultdict(list)
    for event in history["handed"]:
        handed[_delivery(event)].append(event)
    for deliveries in handed.values():
        seen: dict[int, Event] = {}
        for event in deliveries:
            attempt = event.attempt or 0
            if attempt in seen:
                text = f"attempt {attempt} of {event.id} went to {seen[attempt].who} and to {event.who}"
                yield Violation("each hand-over counts as an attempt", text)
            seen[attempt] = event
    for event in (*history["acked"], *history["termed"]):
        for later in handed.get(_delivery(event), []):
            if (later.attempt or 0) > (event.attempt or 0) or (later.asked or 0) > event.at:
                text = f"{event.what} by {event.who} at attempt {event.attempt}, then handed over: {later}"
                yield Violation("none delivered after an acknowledged ack", text)


def _out_of_order(history: _Sorted) -> Iterator[Violation]:
    """A publisher that waits for each receipt gets its messages into the log in that order."""
    last: dict[tuple[str, str | None], Event] = {}
    known: set[Place] = set()
    for event in history["stored"]:
        if _key(event) in known:
            continue
        known.add(_key(event))
        before = last.get((event.who, event.topic))
        if before is not None and (event.seq or 0) <= (before.seq or 0):
            text = f"{event.who}: {before.key} has seq {before.seq}, {event.key} after it {event.seq}"
            yield Violation("a publisher's messages stay in order", text)
        last[event.who, event.topic] = event


def _consumers(history: _Sorted) -> Iterator[Violation]:
    settled = {_delivery(event) for what in ("ack", "acked", "term", "termed") for event in history[what]}
    settled |= {(event.consumer or "", event.dead) for event in history["found"] if event.dead}
    position: dict[str | None, int] = {}
    last: dict[str, Event] = {}
    for event in history["consumer"]:
        if (event.position or 0) < position.get(event.consumer, 0):
            text = f"{event.consumer} went back from {position[event.consumer]} to {event.position}"
            yield Violation("consumers where they were", text)
        position[event.consumer] = event.position or 0
        last[event.consumer or ""] = event
    for name, event in last.items():
        if event.backlog or event.pending:
            yield Violation("delivered until somebody settles it", f"{name} was left with {event}")
        for message in history.found.values():
            if message.dead is None and matches(event.filter or ">", message.topic or ""):
                if (name, message.id or "") in settled:
                    continue
                text = f"{name} is at its end and never settled {message.id} ({message.key})"
                yield Violation("delivered until somebody settles it", text)


def _dead_letters(history: _Sorted) -> Iterator[Violation]:
    """One for each message whose attempts are used up or which a worker refused, and for no other."""
    most = {event.consumer: event.most for event in history["consumer"] if event.most}
    for event in history["handed"]:
        limit = most.get(event.consumer)
        if limit and (event.attempt or 0) > limit:
            text = f"{event.id} was handed to {event.consumer} {event.attempt} times, {limit} are allowed"
            yield Violation("no more attempts than allowed", text)
    acked = {_delivery(event) for event in history["acked"]}
    seen: set[Place] = set()
    for event in history["found"]:
        if event.dead is None:
            continue
        place = event.consumer or "", event.dead
        if place in seen:
            yield Violation("one dead letter for a dead message", f"{place[1]} of {place[0]} has two")
        if place in acked:
            yield Violation("an acknowledged message does not die", f"{place[1]} of {place[0]}")
        seen.add(place)
        sent = history.published.get(_key(event))
        if sent is None or (sent.sha256, sent.size) != (event.sha256, event.size):
            yield Violation("none delivered corrupt", f"the dead letter {event.id} is not what was sent")
    there = set(history.found)
    for event in history["termed"]:
        # One that is settled by all leaves its queue; its letter is the last that there is of it.
        queued = history.policy(history.topics.get(event.id)).get("retention", "limits") != "limits"
        expected = event.id in there or (queued and event.id not in history.to_be_deleted)
        if expected and _delivery(event) not in seen and (queued or event.consumer in most):
            yield Violation("a refused message becomes a dead letter", f"{event.id} of {event.consumer}")


def _refused(history: _Sorted) -> Iterator[Violation]:
    keys = {_key(event): event for event in history["refused"]}
    for event in (*history["stored"], *history["handed"], *history["found"]):
        if event.dead is None and (refused := keys.get(_key(event))) is not None:
            text = f"{refused.who} was told that there is no room for {event.key}, and {event} is there"
            yield Violation("a refusal is no acknowledgement", text)


def _kept_too_long(history: _Sorted) -> Iterator[Violation]:
    """What policies remove is gone, some time after the last process that settles has ended."""
    confirmed = history.settled("acked", "termed")
    held: dict[str, int] = defaultdict(int)
    for event in history.found.values():
        if event.dead is not None:
            continue
        held[event.topic or ""] += 1
        queue = history.policy(event.topic).get("retention", "limits") != "limits"
        if queue and history.settled_by_all(event, confirmed):
            yield Violation("what everybody has settled is gone", f"{event} is still there")
    for topic, count in held.items():
        most = history.policy(topic).get("max_messages")
        if most is not None and count > most:
            yield Violation("no more than its policy says", f"{topic} holds {count}, {most} are allowed")
