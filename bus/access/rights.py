"""What a token may do, as topic filters. Pure.

``publish`` is to send messages to a topic, ``subscribe`` to see, read and consume them, ``admin`` to delete
them, to set policies, to replay dead letters and to delete others' consumers. Who is admin of a topic may
publish and subscribe there as well; who is admin of ``>`` runs the broker: tokens, scrubs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from tensorbus.bus.topics import check_filter, covers, intersection, overlap
from tensorbus.errors import InvalidRequest, LimitExceeded

Right = Literal["publish", "subscribe", "admin"]

RIGHTS: tuple[Right, ...] = ("publish", "subscribe", "admin")
EVERYTHING = ">"
"""The filter of all topics."""
MAX_FILTERS = 256
"""Filters of one right of one token."""


@dataclass(frozen=True, slots=True)
class Rights:
    """Filters that say where a token may publish, subscribe and administrate.

    Raises:
        InvalidName: one is no topic filter.
        LimitExceeded: more than 256 of a kind.
    """

    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()
    admin: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for right in RIGHTS:
            filters = cast(tuple[str, ...], getattr(self, right))
            if len(filters) > MAX_FILTERS:
                raise LimitExceeded(f"{len(filters)} filters for {right}; allowed are {MAX_FILTERS}")
            for pattern in filters:
                check_filter(pattern)

    def filters(self, right: Right) -> tuple[str, ...]:
        """Where ``right`` is given, also as a part of admin."""
        if right == "admin":
            return self.admin
        return (self.publish if right == "publish" else self.subscribe) + self.admin

    def allow(self, right: Right, pattern: str) -> bool:
        """Whether ``right`` is given on all topics that the valid filter (or topic) ``pattern`` selects.

        One filter of the token has to cover it: several that do so only together do not count.
        """
        return any(covers(given, pattern) for given in self.filters(right))

    def touch(self, right: Right, pattern: str) -> bool:
        """Whether ``right`` is given on any topic that ``pattern`` selects."""
        return any(overlap(given, pattern) for given in self.filters(right))

    def within(self, right: Right, pattern: str) -> list[str]:
        """Filters of the topics of ``pattern`` on which ``right`` is given; none covers another."""
        found: list[str] = []
        for given in self.filters(right):
            both = intersection(given, pattern)
            if both is not None and not any(covers(other, both) for other in found):
                found = [other for other in found if not covers(both, other)] + [both]
        return found

    def to_json(self) -> dict[str, list[str]]:
        """The three lists."""
        return {"publish": list(self.publish), "subscribe": list(self.subscribe), "admin": list(self.admin)}

    @classmethod
    def from_json(cls, document: Mapping[str, object]) -> Rights:
        """The lists among the fields of ``document``; a missing one is empty. Raises InvalidRequest too."""
        return cls(*(_filters(document.get(right), right) for right in RIGHTS))


def _filters(value: object, right: Right) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(
        isinstance(entry, str) for entry in cast(Sequence[object], value)
    ):
        raise InvalidRequest(f"token: field {right!r} must be an array of topic filters")
    # In one order and once each, so that what is shown does not depend on how it was said.
    return tuple(sorted(set(cast(Sequence[str], value))))


NO_RIGHTS = Rights()
OWNER_RIGHTS = Rights(admin=(EVERYTHING,))
"""May do everything."""
