"""The reference's uploads: what has come of messages that are being published, and the room they take."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import takewhile

from tensorbus.bus.policies import PolicyConfig
from tensorbus.errors import LimitExceeded, NotFound, QuotaExceeded

from .driven import EXPIRY, ends_of

NOTED_EARLIER = EXPIRY / 24
"""Seconds by which the end of an upload is put off before a crash remembers it."""

Account = tuple[str, str]
"""A policy that refuses what is too much, and a topic."""


@dataclass
class Open:
    """A resumable upload.

    Attributes:
        body: all that is to come; ``sent`` bytes of it have.
        source: what its publisher says that the bytes are made of.
        expires: when it may be removed; ``noted`` is what a crash leaves of that.
        room: where it has taken its room, in this process.
        known: whether this process has seen its first frame.
    """

    id: str
    topic: str
    key: str | None
    body: bytes
    source: str | None
    expires: float
    noted: float
    room: Account | None
    sent: int = 0
    known: bool = False
    ends: list[int] = field(default_factory=list[int])

    def __post_init__(self) -> None:
        self.ends = ends_of(self.body)

    def boundary(self, size: int) -> int:
        """The end of the last whole frame among the first ``size`` bytes."""
        return max((0, *takewhile(lambda end: end <= size, self.ends)))

    @property
    def visible(self) -> int:
        """What followers may have: all whole frames but the last one."""
        return min(self.boundary(self.sent), self.ends[-2])


class Uploads:
    """All of them, in the order in which they were made."""

    def __init__(self) -> None:
        self.open: dict[str, Open] = {}

    def of_key(self, topic: str, key: str | None) -> Open | None:
        """The upload that has a key."""
        found = (each for each in self.open.values() if (each.topic, each.key) == (topic, key))
        return None if key is None else next(found, None)

    def get(self, upload_id: str) -> Open:
        """Raises NotFound."""
        if upload_id not in self.open:
            raise NotFound(upload_id)
        return self.open[upload_id]

    def check_room(
        self, policy: tuple[str, PolicyConfig] | None, topic: str, stored: list[int], size: int
    ) -> Account | None:
        """Where a message that begins takes its room. ``stored`` has the sizes of those that are there.

        Raises QuotaExceeded, LimitExceeded.
        """
        if policy is None:
            return None
        name, config = policy
        taken = [len(each.body) for each in self.open.values() if each.room == (name, topic)]
        check_stored(config, [*stored, *taken], size)
        return (name, topic) if config.discard == "new" else None

    def restart(self, now: float) -> None:
        """What a stop or a crash leaves of them."""
        for each in self.open.values():
            each.sent = each.boundary(each.sent)
            each.room, each.known, each.expires = None, False, each.noted

    def had_a_turn(self, upload: Open, now: float) -> None:
        """Somebody has written to it, or was about to."""
        upload.known |= upload.visible > 0
        upload.expires = now + EXPIRY
        if upload.expires - upload.noted >= NOTED_EARLIER:
            upload.noted = upload.expires


def check_stored(config: PolicyConfig | None, stored: list[int], size: int) -> None:
    """Whether a message may be stored beside others of these sizes. Raises QuotaExceeded, LimitExceeded."""
    if config is None:
        return
    if config.max_bytes is not None and size > config.max_bytes:
        raise LimitExceeded(config.filter)
    if config.discard == "old":
        return
    if config.max_messages is not None and len(stored) >= config.max_messages:
        raise QuotaExceeded(config.filter)
    if config.max_bytes is not None and sum(stored) + size > config.max_bytes:
        raise QuotaExceeded(config.filter)
