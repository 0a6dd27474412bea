"""What is known to be damaged, and what a scrub has found: frozen values and their JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, cast

from .fields import Fields, to_iso

ScrubState = Literal["never", "running", "done", "stopped", "failed"]
_STATES: tuple[ScrubState, ...] = ("never", "running", "done", "stopped", "failed")


@dataclass(frozen=True, slots=True)
class Damage:
    """A message that is not delivered, because its frames are not what was stored.

    Attributes:
        id, seq, topic, key, bytes: of the message; ``bytes`` is what it should have.
        reason: what was found.
        found: when.
    """

    id: str
    seq: int
    topic: str
    key: str | None
    bytes: int
    reason: str
    found: datetime

    def to_json(self) -> dict[str, object]:
        """The value as a JSON object."""
        return {
            "id": self.id,
            "seq": self.seq,
            "topic": self.topic,
            "key": self.key,
            "bytes": self.bytes,
            "reason": self.reason,
            "found": to_iso(self.found),
        }

    @classmethod
    def from_json(cls, document: object) -> Damage:
        """The value of a JSON object; raises InvalidRequest."""
        got = Fields(document, "damage")
        return cls(
            id=got.text("id"),
            seq=got.integer("seq"),
            topic=got.text("topic"),
            key=got.text_or_none("key"),
            bytes=got.integer("bytes"),
            reason=got.text("reason"),
            found=got.moment("found"),
        )


@dataclass(frozen=True, slots=True)
class DamagePage:
    """Part of the listing of damaged messages; ``next`` is the seq to continue after, None at the end."""

    damaged: tuple[Damage, ...]
    next: int | None

    def to_json(self) -> dict[str, object]:
        """The value as a JSON object."""
        return {"damaged": [damage.to_json() for damage in self.damaged], "next": self.next}

    @classmethod
    def from_json(cls, document: object) -> DamagePage:
        """The value of a JSON object; raises InvalidRequest."""
        got = Fields(document, "page of damaged messages")
        return cls(tuple(map(Damage.from_json, got.array("damaged"))), got.integer_or_none("next"))


@dataclass(frozen=True, slots=True)
class ScrubReport:
    """How far a scrub is, and what it has found; lists hold the first 1,000 of a kind.

    Attributes:
        state: ``never`` if none was made since the broker started.
        started, finished: when; None for what has not happened.
        rate: bytes per second that are read at the most; None is no limit.
        messages, bytes: verified so far; ``of_messages`` and ``of_bytes`` is what there was at its start.
        damaged: ids of messages that were not known to be damaged, and what is wrong with each.
        still_damaged: how many were known before and still are.
        restored: ids of messages that were damaged and are whole again.
        orphans: files in the data directory that belong to no message.
        rows: what is wrong with the database.
        problem: why it failed, in the state ``failed``.
    """

    state: ScrubState = "never"
    started: datetime | None = None
    finished: datetime | None = None
    rate: int | None = None
    messages: int = 0
    bytes: int = 0
    of_messages: int = 0
    of_bytes: int = 0
    damaged: tuple[tuple[str, str], ...] = ()
    still_damaged: int = 0
    restored: tuple[str, ...] = ()
    orphans: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def clean(self) -> bool:
        """Whether it went to its end and everything stored is whole; orphans do no harm."""
        return self.state == "done" and not (self.damaged or self.still_damaged or self.rows)

    def to_json(self) -> dict[str, object]:
        """The value as a JSON object."""
        return {
            "state": self.state,
            "started": None if self.started is None else to_iso(self.started),
            "finished": None if self.finished is None else to_iso(self.finished),
            "rate": self.rate,
            "messages": self.messages,
            "bytes": self.bytes,
            "of_messages": self.of_messages,
            "of_bytes": self.of_bytes,
            "damaged": [{"id": name, "reason": reason} for name, reason in self.damaged],
            "still_damaged": self.still_damaged,
            "restored": list(self.restored),
            "orphans": list(self.orphans),
            "rows": list(self.rows),
            "problem": self.problem,
            "clean": self.clean,
        }

    @classmethod
    def from_json(cls, document: object) -> ScrubReport:
        """The value of a JSON object; raises InvalidRequest."""
        got = Fields(document, "scrub")
        found = [Fields(entry, "damage") for entry in got.array("damaged")]
        return cls(
            state=cast(ScrubState, got.choice("state", _STATES)),
            started=got.moment_or_none("started"),
            finished=got.moment_or_none("finished"),
            rate=got.integer_or_none("rate"),
            messages=got.integer("messages"),
            bytes=got.integer("bytes"),
            of_messages=got.integer("of_messages"),
            of_bytes=got.integer("of_bytes"),
            damaged=tuple((entry.text("id"), entry.text("reason")) for entry in found),
            still_damaged=got.integer("still_damaged"),
            restored=_texts(got.document, "restored"),
            orphans=_texts(got.document, "orphans"),
            rows=_texts(got.document, "rows"),
            problem=got.text_or_none("problem"),
        )


def _texts(document: Mapping[str, object], name: str) -> tuple[str, ...]:
    return tuple(str(entry) for entry in Fields(document, "scrub").array(name))
