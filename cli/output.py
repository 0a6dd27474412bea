"""What commands print: JSON for programs, words and tables for people."""

from __future__ import annotations

import json
from collections.abc import Mapping

import click

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def print_json(document: Mapping[str, object]) -> None:
    """One JSON object on one line of stdout."""
    click.echo(json.dumps(document, ensure_ascii=False))


def size(count: int | None) -> str:
    """Bytes for people: ``1.4 MiB``; ``?`` where they are not known."""
    if count is None:
        return "?"
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 else f"{value:.2f} {_UNITS[unit]}"


def share(part: int, whole: int | None) -> str:
    """``14.06 %``; empty where there is no whole."""
    return f"{100 * part / whole:.2f} %" if whole else ""
