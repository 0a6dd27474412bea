"""Events: what an aggregator tells whoever watches it. ``docs/federation.md`` lists them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from tensorbus.bus.messages import to_iso

EventName = Literal[
    "waiting",
    "resumed",
    "round",
    "paused",
    "continued",
    "declined",
    "folding",
    "folded",
    "ignored",
    "refused",
    "refolding",
    "overdue",
    "closing",
    "reopened",
    "publishing",
    "published",
    "settled",
    "relaying",
    "submitting",
    "submitted",
    "overtaken",
    "interrupted",
    "cancelled",
    "done",
]

Value = str | int | float | bool | None | list[str] | dict[str, float] | dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened, with its fields."""

    name: EventName
    fields: dict[str, Value]
    time: datetime = field(default_factory=lambda: datetime.now(UTC))

    def to_json(self) -> dict[str, Value]:
        """One flat map; ``event`` is the name and ``time`` is ISO 8601 in UTC. NaN becomes null."""
        return {
            "event": self.name,
            "time": to_iso(self.time),
            **{name: _finite(value) for name, value in self.fields.items()},
        }


def _finite(value: Value) -> Value:
    if not isinstance(value, dict):
        return value
    return {name: None if number is None or math.isnan(number) else number for name, number in value.items()}


class Emitter:
    """Makes events for a listener, which is called at once, on the event loop."""

    def __init__(self, listener: Callable[[Event], None]) -> None:
        self._listener = listener

    def __call__(self, name: EventName, **fields: Value) -> None:
        self._listener(Event(name, fields))
