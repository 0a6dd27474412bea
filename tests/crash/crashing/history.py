"""What the processes of a crash test saw, one JSON line an event, in a file for each process.

An intent is written before its request is sent, an outcome when the broker's answer has come. A line is
written by one system call, so that a kill leaves it whole or leaves it out; only the machine could tear one,
and it is not the machine that is killed.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

What = Literal[
    # a publisher: it is about to publish; the broker has acknowledged, or has no room and the publisher
    # gives it up; it is about to delete; it is deleted
    "publish",
    "stored",
    "refused",
    "delete",
    "deleted",
    # an upload by tus: where the broker made it, and the offset from which it goes on
    "created",
    "resumed",
    # a worker: a message was handed to it; its body was read to the end; it could not be right
    "handed",
    "read",
    "unreadable",
    # a worker settles: the intent, and the broker's confirmation
    "ack",
    "acked",
    "term",
    "termed",
    "nak",
    "naked",
    # the audit at the end: a stored message, a consumer, what should not be there
    "found",
    "consumer",
    "orphan",
    # an answer that no fault explains
    "unexpected",
    # the harness; of a policy, ``topic`` is the filter and ``text`` its JSON
    "killed",
    "started",
    "policy",
]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a process saw.

    Attributes:
        at: seconds of the machine's monotonic clock, the same for all processes, when it was written.
        who: the process (and thread) that saw it.
        key, topic, id, seq, sha256, size: of the message; the hash and size are of the payload.
        consumer, attempt: of a delivery.
        asked: of ``handed``: when the request was sent that was answered with it.
        position, backlog, pending: of a consumer; ``filter`` too.
        most: attempts that a consumer allows.
        dead: of a dead letter, ``consumer`` and the id of the message that died.
        text: whatever else is to be said.
    """

    what: What
    who: str = ""
    at: float = field(default_factory=time.monotonic)
    key: str | None = None
    topic: str | None = None
    id: str | None = None
    seq: int | None = None
    sha256: str | None = None
    size: int | None = None
    consumer: str | None = None
    attempt: int | None = None
    asked: float | None = None
    position: int | None = None
    backlog: int | None = None
    pending: int | None = None
    filter: str | None = None
    most: int | None = None
    dead: str | None = None
    text: str | None = None


class History:
    """An append-only file of events; may be shared by the threads of a process."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def add(self, event: Event) -> None:
        """Write an event down."""
        document = {name: value for name, value in asdict(event).items() if value is not None}
        os.write(self._file, json.dumps(document).encode() + b"\n")


class Tally:
    """How many events of each kind there are in a folder, while they are written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}
        self._seen: Counter[str] = Counter()

    def counts(self) -> Counter[str]:
        """Those so far; only what has come since the last call is read."""
        for path in self._folder.glob("*.jsonl"):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                for line in file:
                    if line.endswith(b"\n"):
                        self._read[path] = self._read.get(path, 0) + len(line)
                        self._seen[json.loads(line)["what"]] += 1
        return self._seen


_KNOWN = {each.name for each in fields(Event)}


def read_events(paths: Iterable[Path]) -> list[Event]:
    """All events of some files, by time."""
    events: list[Event] = []
    for path in paths:
        for line in path.read_text().splitlines():
            document: dict[str, Any] = json.loads(line)
            events.append(Event(**{name: value for name, value in document.items() if name in _KNOWN}))
    return sorted(events, key=lambda event: event.at)
