"""What the broker says about consumers and their deliveries: frozen values and their JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Literal, cast

from .fields import Fields
from .messages import MessageInfo, to_iso
from .topics import check_filter

Start = Literal["all", "new"]

MAX_ACK_WAIT = 24 * 3600.0
MAX_ACK_PENDING = 10_000


@dataclass(frozen=True, slots=True)
class ConsumerConfig:
    """What a durable consumer wants.

    Attributes:
        filter: topics, with ``*`` and ``>``.
        start: ``all`` from the first stored message on, ``new`` only those sealed after its creation.
        ack_wait: seconds after which an unsettled delivery is handed over again (0.01 to one day).
        max_ack_pending: deliveries in flight over all workers, 1 to 10,000; no more new ones beyond it.
    """

    filter: str
    start: Start = "all"
    ack_wait: float = 30.0
    max_ack_pending: int = 64

    def to_json(self) -> dict[str, object]:
        """The value as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: object) -> ConsumerConfig:
        """The value of a JSON object, defaults filled in; raises InvalidRequest, or InvalidName (filter)."""
        got = Fields(document, "consumer", allowed=("filter", "start", "ack_wait", "max_ack_pending"))
        return cls(
            filter=check_filter(got.text("filter")),
            start=cast(Start, got.choice("start", ("all", "new"), default="all")),
            ack_wait=got.number("ack_wait", at_least=0.01, at_most=MAX_ACK_WAIT, default=30.0),
            max_ack_pending=got.integer("max_ack_pending", at_least=1, at_most=MAX_ACK_PENDING, default=64),
        )


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
        config = {name: got.document.get(name) for name in ("filter", "start", "ack_wait", "max_ack_pending")}
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
    """One hand-over of a message: settle it with ``token``. ``attempt`` counts from 1."""

    token: str
    consumer: str
    attempt: int
    message: MessageInfo

    def to_json(self) -> dict[str, object]:
        """The value as a JSON object."""
        return {
            "token": self.token,
            "consumer": self.consumer,
            "attempt": self.attempt,
            "message": self.message.to_json(),
        }

    @classmethod
    def from_json(cls, document: object) -> DeliveryInfo:
        """The value of a JSON object; raises InvalidRequest."""
        got = Fields(document, "delivery")
        return cls(
            token=got.text("token"),
            consumer=got.text("consumer"),
            attempt=got.integer("attempt"),
            message=MessageInfo.from_json(got.mapping("message")),
        )
