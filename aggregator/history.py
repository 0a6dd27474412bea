"""History: how a job went so far, in a header of its newest global model. Pure.

Strategy. Updates and records are deleted a round after they counted, so whoever looks at a job late would see
its last round only. The weighted means of the sites' metrics therefore travel from model to model, as JSON
text of the form ``[[round, updates, {name: mean}], …]``. It has a bound: when it is full, every second one of
the older half goes, so that a long job keeps a curve of all its rounds, dense at the end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import cast

MAX_BYTES = 4096
"""Of the text; all headers of a message may have 16 KiB."""
MAX_METRICS = 4
"""Metrics of a round that are kept, losses first; a model's headers are no store for more."""
DIGITS = 5
"""Significant ones: as many as a chart shows."""


def appended(history: object, number: int, updates: int, metrics: Mapping[str, float]) -> str:
    """The text of ``history`` (a header as it came: None, or text) and of round ``number`` behind it.

    What cannot be read is left out, and so are rounds from ``number`` on.
    """
    names = sorted(metrics, key=lambda name: ("loss" not in name.lower(), name))[:MAX_METRICS]
    shown = {name: float(f"{metrics[name]:.{DIGITS}g}") for name in names}
    rounds = [entry for entry in _entries(history) if cast(int, entry[0]) < number]
    rounds.append([number, updates, shown])
    while len(text := json.dumps(rounds, separators=(",", ":"))) > MAX_BYTES and len(rounds) > 1:
        half = max(2, len(rounds) // 2)
        rounds = rounds[:half][::2] + rounds[half:] if len(rounds) > 2 else rounds[1:]
    return text


def _entries(history: object) -> list[list[object]]:
    """The entries that make sense, in their order."""
    if not isinstance(history, str) or len(history) > MAX_BYTES:
        return []
    try:
        value: object = json.loads(history)
    except (ValueError, RecursionError):
        return []
    if not isinstance(value, list):
        return []
    return [cast("list[object]", entry) for entry in cast("list[object]", value) if _is_entry(entry)]


def _is_entry(value: object) -> bool:
    if not isinstance(value, list) or len(cast("list[object]", value)) != 3:
        return False
    number, updates, metrics = cast("list[object]", value)
    return type(number) is int and type(updates) is int and isinstance(metrics, dict)
