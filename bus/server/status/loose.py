"""Values that anybody may have written into a header: taken if they make sense, else passed over. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import cast

from tensorbus.bus.messages import to_iso

MAX_NAME = 64
MAX_METRICS = 16
MAX_HISTORY = 128

Metrics = dict[str, float | None]


def read_text(value: object) -> str | None:
    """Text."""
    return value if isinstance(value, str) else None


def read_name(value: object) -> str | None:
    """Text of up to 64 characters."""
    return value if isinstance(value, str) and 0 < len(value) <= MAX_NAME else None


def read_count(value: object) -> int | None:
    """A whole number that JavaScript has as well."""
    return value if type(value) is int and 0 <= value < 2**53 else None


def read_number(value: object) -> float | None:
    """A finite number: JSON has no other."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e300 < value < 1e300:
        return None
    return float(value)


def read_map(text: object) -> Mapping[str, object]:
    """The JSON object in a text; an empty one if there is none."""
    value = _json(text)
    return cast("Mapping[str, object]", value) if isinstance(value, dict) else {}


def read_metrics(text: object) -> Metrics:
    """The JSON map of numbers in a text."""
    return _numbers(read_map(text))


def read_history(text: object) -> list[dict[str, object]]:
    """How the rounds before went: ``[[round, updates, {metric: mean}], …]`` in a text; the last 128."""
    value = _json(text)
    found: list[dict[str, object]] = []
    for entry in cast("list[object]", value)[-MAX_HISTORY:] if isinstance(value, list) else []:
        if not isinstance(entry, list) or len(cast("list[object]", entry)) != 3:
            continue
        number, updates, metrics = cast("list[object]", entry)
        told = read_count(number)
        if told is not None and isinstance(metrics, dict):
            means = _numbers(cast("dict[str, object]", metrics))
            found.append({"round": told, "updates": read_count(updates) or 0, "metrics": means})
    return found


def read_quorum(value: object, full: int) -> int | None:
    """How many of ``full`` are enough: a count, or a share such as "80%"."""
    if not isinstance(value, str):
        return read_count(value)
    try:
        share = float(value.removesuffix("%"))
    except ValueError:
        return None
    return max(1, math.ceil(share * full / 100)) if 0 < share <= 100 else None


def to_moment(seconds: float) -> str | None:
    """Seconds since the epoch as ISO 8601; None where there is no such date."""
    try:
        return to_iso(datetime.fromtimestamp(seconds, UTC))
    except (ValueError, OverflowError, OSError):
        return None


def _numbers(value: Mapping[str, object]) -> Metrics:
    named = [(name, number) for name, number in value.items() if len(name) <= MAX_NAME]
    return {name: read_number(number) for name, number in named[:MAX_METRICS]}


def _json(text: object) -> object:
    try:
        return json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None
