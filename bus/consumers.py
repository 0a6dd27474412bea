"""What the broker says about consumers and their deliveries: frozen values and their JSON."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, cast

from tensorbus.errors import InvalidRequest

from .fields import Fields, to_iso
from .messages import MessageInfo
from .topics import check_filter, check_topic

Start = Literal["all", "new"] | int | datetime

MIN_ACK_WAIT = 0.01
MAX_ACK_WAIT = 24 * 3600.0
MAX_ACK_PENDING = 10_000
MAX_DELIVER = 1_000_000
MAX_BACKOFF = 64
"""Entries of ``backoff``."""
MAX_THRESHOLD = 366 * 24 * 3600.0
MAX_INLINE = 1 << 20
"""Largest body in bytes that may be asked for along with its delivery."""

_CONFIG = (
    "filter",
    "start",
    "ack_wait",
    "max_ack_pending",
    "backoff",
    "max_deliver",
    "dead_letter",
    "inactive_threshold",
)


@dataclass(frozen=True, slots=True)
class ConsumerConfig:
    """What a durable consumer wants. Times are seconds.

    Attributes:
        filter: topics, with ``*`` and ``>``.
        start: ``all`` from the first stored message on, ``new`` only those sealed after its creation, an
            integer from the message with this seq on, a (past, aware) datetime from the first message sealed
            then or later on.
        ack_wait: after which an unsettled delivery is handed over again (0.01 to one day).
        max_ack_pending: deliveries in flight over all workers, 1 to 10,000; no more new ones beyond it.
        backoff: in place of ``ack_wait``, one for each attempt; the last holds for all further ones.
        max_deliver: attempts after which a message becomes a dead letter; None for as many as it takes.
        dead_letter: the topic of its dead letters; None is ``dead.`` and its name.
        inactive_threshold: a consumer that nobody pulls from, settles or waits for so long is deleted; None
            is never.
    """

    filter: str
    start: Start = "all"
    ack_wait: float = 30.0
    max_ack_pending: int = 64
    backoff: tuple[float, ...] = ()
    max_deliver: int | None = None
    dead_letter: str | None = None
    inactive_threshold: float | None = None

    def wait(self, attempt: int) -> float:
        """Seconds that a worker has for this attempt, counted from 1."""
        return self.backoff[min(attempt, len(self.backoff)) - 1] if self.backoff else self.ack_wait

    def to_json(self) -> dict[str, object]:
        """The value as a JSON object."""
        return {
            "filter": self.filter,
            "start": _start_to_json(self.start),
            "ack_wait": self.ack_wait,
            "max_ack_pending": self.max_ack_pending,
            "backoff": list(self.backoff),
            "max_deliver": self.max_deliver,
            "dead_letter": self.dead_letter,
            "inactive_threshold": self.inactive_threshold,
        }

    @classmethod
    def from_json(cls, document: object) -> ConsumerConfig:
        """The value of a JSON object, defaults filled in.

        Raises:
            InvalidRequest: a field is ill-typed or out of its bounds, or ``backoff`` has more entries than
                there are attempts.
            InvalidName: the filter or the dead-letter topic.
        """
        got = Fields(document, "consumer", allowed=_CONFIG)
        dead_letter = got.text_or_none("dead_letter")

        def absent(name: str) -> bool:
            return got.document.get(name) is None

        config = cls(
            filter=check_filter(got.text("filter")),
            start=_start_from_json(got),
            ack_wait=got.number("ack_wait", MIN_ACK_WAIT, MAX_ACK_WAIT, default=30.0),
            max_ack_pending=got.integer("max_ack_pending", 1, MAX_ACK_PENDING, default=64),
            backoff=_backoff(got),
            max_deliver=None if absent("max_deliver") else got.integer("max_deliver", 1, MAX_DELIVER),
            dead_letter=None if dead_letter is None else check_topic(dead_letter),
            inactive_threshold=None
            if absent("inactive_threshold")
            else got.number("inactive_threshold", MIN_ACK_WAIT, MAX_THRESHOLD),
        )
        if config.max_deliver is not None and len(config.backoff) > config.max_deliver:
            raise InvalidRequest(
                f"consumer: backoff has {len(config.backoff)} entries for {config.max_deliver} attempts; "
                "give max_deliver at least as many"
            )
        return config


def _start_to_json(start: Start) -> object:
    if isinstance(start, datetime):
        return {"time": to_iso(start)}
    return {"seq": start} if isinstance(start, int) else start


def _start_from_json(got: Fields) -> Start:
    given = got.document.get("start")
    if not isinstance(given, Mapping):
        return cast(Start, got.choice("start", ("all", "new"), default="all"))
    start = Fields(cast(object, given), "consumer: start", allowed=("seq", "time"))
    if len(start.document) != 1:
        raise InvalidRequest('consumer: start must be "all", "new", {"seq": …} or {"time": …}')
    return start.integer("seq", at_least=1) if "seq" in start.document else start.moment("time")


def _backoff(got: Fields) -> tuple[float, ...]:
    given = got.array("backoff") if got.document.get("backoff") is not None else ()
    if len(given) > MAX_BACKOFF:
        raise InvalidRequest(f"consumer: backoff has {len(given)} entries; allowed are {MAX_BACKOFF}")
    each = (Fields({"backoff": wait}, "consumer") for wait in given)
    return tuple(one.number("backoff", MIN_ACK_WAIT, MAX_ACK_WAIT) for one in each)


def dead_letter_topic(name: str) -> str:
    """Where the dead letters of a consumer go whose configuration says nothing."""
    return f"dead.{name}"


@dataclass(frozen=True, slots=True)
class ConsumerInfo:
    """A durable consumer and where it stands.

    Attributes:
        position: every matching message up to this seq has been handed over at least once.
        ack_pending: deliveries handed over and not settled.
        backlog: matching messages never handed over.
    """

    name: str
    config: ConsumerConfig
    position: int
    ack_pending: int
    backlog: int
    created: datetime

    def to_json(self) -> dict[str, object]:
        """The value as a JSON object; the configuration's fields lie beside the others."""
        return {
            "name": self.name,
            **self.config.to_json(),
            "position": self.position,
            "ack_pending": self.ack_pending,
            "backlog": self.backlog,
            "created": to_iso(self.created),
        }

    @classmethod
    def from_json(cls, document: object) -> ConsumerInfo:
        """The value of a JSON object; raises InvalidRequest."""
        got = Fields(document, "consumer")
        config = {name: got.document.get(name) for name in _CONFIG}
        return cls(
            name=got.text("name"),
            config=ConsumerConfig.from_json(config),
            position=got.integer("position"),
            ack_pending=got.integer("ack_pending"),
            backlog=got.integer("backlog"),
            created=got.moment("created"),
        )


@dataclass(frozen=True, slots=True)
class DeliveryInfo:
    """One hand-over of a message: settle it with ``token``.

    Attributes:
        attempt: counts from 1; a delivery that was given back unread does not count.
        frames: the whole body, if it was asked for and is small; base64 in JSON.
    """

    token: str
    consumer: str
    attempt: int
    message: MessageInfo
    frames: bytes | None = None

    def to_json(self) -> dict[str, object]:
        """The value as a JSON object."""
        document: dict[str, object] = {
            "token": self.token,
            "consumer": self.consumer,
            "attempt": self.attempt,
            "message": self.message.to_json(),
        }
        if self.frames is not None:
            document["frames"] = base64.b64encode(self.frames).decode("ascii")
        return document

    @classmethod
    def from_json(cls, document: object) -> DeliveryInfo:
        """The value of a JSON object; raises InvalidRequest."""
        got = Fields(document, "delivery")
        return cls(
            token=got.text("token"),
            consumer=got.text("consumer"),
            attempt=got.integer("attempt"),
            message=MessageInfo.from_json(got.mapping("message")),
            frames=_frames(got.text_or_none("frames")),
        )


def _frames(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest("delivery: field 'frames' must be base64") from None
