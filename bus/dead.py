"""Why a message is on a dead-letter topic: frozen values and their JSON. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from .fields import Fields, to_iso

MAX_DEATHS = 32
"""How often the same content may become a dead letter anew; see `DeadLetters` of the broker."""


@dataclass(frozen=True, slots=True)
class Death:
    """How a message became a dead letter.

    Attributes:
        consumer: name of the consumer that could not deal with it.
        message, topic, seq, key: of the message as it was delivered to that consumer.
        attempts: how often it was handed over.
        reason: what the last worker said, or that the attempts were used up.
        at: when, in UTC.
        earlier: the deaths before this one, oldest first: their letters were delivered, and died again.
    """

    consumer: str
    message: str
    topic: str
    seq: int
    key: str | None
    attempts: int
    reason: str
    at: datetime
    earlier: tuple[Death, ...] = ()

    @property
    def consumers(self) -> frozenset[str]:
        """Names of all consumers that could not deal with it."""
        return frozenset((self.consumer, *(death.consumer for death in self.earlier)))

    def to_json(self) -> dict[str, object]:
        """The value as a JSON object."""
        return self._alone() | {"earlier": [death._alone() for death in self.earlier]}

    def _alone(self) -> dict[str, object]:
        return {
            "consumer": self.consumer,
            "message": self.message,
            "topic": self.topic,
            "seq": self.seq,
            "key": self.key,
            "attempts": self.attempts,
            "reason": self.reason,
            "at": to_iso(self.at),
        }

    @classmethod
    def from_json(cls, document: object) -> Death:
        """The value of a JSON object; raises InvalidRequest."""
        got = Fields(document, "dead")
        before = got.array("earlier")[:MAX_DEATHS]
        return cls._parse(got, tuple(cls._parse(Fields(each, "dead"), ()) for each in before))

    @classmethod
    def _parse(cls, got: Fields, earlier: tuple[Death, ...]) -> Death:
        return cls(
            consumer=got.text("consumer"),
            message=got.text("message"),
            topic=got.text("topic"),
            seq=got.integer("seq"),
            key=got.text_or_none("key"),
            attempts=got.integer("attempts"),
            reason=got.text("reason"),
            at=got.moment("at"),
            earlier=earlier,
        )
