"""What is going on at a broker, for whoever watches it: frozen values."""

from __future__ import annotations

from dataclasses import dataclass

from .messages import MessageInfo


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
