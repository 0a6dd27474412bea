"""What is going on at a broker, for whoever watches it: frozen values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, cast

from .fields import Fields
from .messages import MessageInfo

Direction = Literal["upload", "download"]


@dataclass(frozen=True, slots=True)
class Transfer:
    """A message that is being published.

    Attributes:
        info: as far as it is known.
        received: bytes of the body that are kept; None after a restart, before anybody goes on with it.
        total: bytes of the body, None where that is not known.
        resumable: it outlives its connection.
        idle: nobody is sending.
    """

    info: MessageInfo
    received: int | None
    total: int | None
    resumable: bool
    idle: bool


@dataclass(frozen=True, slots=True)
class Moving:
    """A message on its way to or from a broker, as watchers are shown it.

    Attributes:
        id: of the transfer. message: the message's.
        bytes: that have been moved. total: that are to be; None where that is not known.
        began: an ISO 8601 time.
        resumable: it outlives its connection. idle: nobody is sending.
        job, round, site: what the headers say, where they say it.
    """

    id: str
    direction: Direction
    message: str
    topic: str
    bytes: int | None
    total: int | None
    began: str
    resumable: bool
    idle: bool
    job: str | None
    round: int | None
    site: str | None

    def to_json(self) -> dict[str, object]:
        """All of it."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: object) -> Moving:
        """What ``to_json`` gave. Raises InvalidRequest."""
        got = Fields(document, "transfer")
        return cls(
            got.text("id"),
            cast(Direction, got.choice("direction", ("upload", "download"))),
            got.text("message"),
            got.text("topic"),
            got.integer_or_none("bytes"),
            got.integer_or_none("total"),
            got.text("began"),
            got.flag("resumable"),
            got.flag("idle"),
            got.text_or_none("job"),
            got.integer_or_none("round"),
            got.text_or_none("site"),
        )


@dataclass(frozen=True, slots=True)
class Redelivery:
    """A message that a consumer was handed more than once, and has not settled.

    Attributes:
        attempt: how often.
        due: seconds until it may be handed over again.
        held: by a worker; False after it was given back.
    """

    message: str
    attempt: int
    due: float
    held: bool


@dataclass(frozen=True, slots=True)
class Trouble:
    """What a consumer has difficulties with.

    Attributes:
        dead_letter: the topic of what it could not deal with.
        redelivering: how many messages it was handed more than once.
        examples: some of these, the most often handed over first.
    """

    dead_letter: str
    redelivering: int
    examples: tuple[Redelivery, ...] = ()
