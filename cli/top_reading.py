"""Part: a JSON object of the broker's status, read without trusting it to hold what it should."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import cast


class Part:
    """A JSON object; what is missing or of another kind reads as empty, as a newer broker may differ."""

    def __init__(self, value: object) -> None:
        fields: Mapping[str, object] = cast("Mapping[str, object]", value) if isinstance(value, dict) else {}
        self._fields = fields

    def __bool__(self) -> bool:
        return bool(self._fields)

    def text(self, name: str) -> str:
        """A text that is safe on a terminal: others chose it, and control characters could take it over."""
        value = self._fields.get(name)
        return printable(value) if isinstance(value, str) else ""

    def number(self, name: str) -> float | None:
        """A number; None where there is none."""
        value = self._fields.get(name)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    def count(self, name: str) -> int:
        """A whole number; 0 where there is none."""
        return int(self.number(name) or 0)

    def flag(self, name: str) -> bool:
        """Whether it is there and true."""
        return self._fields.get(name) is True

    def time(self, name: str) -> datetime | None:
        """A time in UTC; None where there is none."""
        try:
            found = datetime.fromisoformat(self.text(name))
        except ValueError:
            return None
        return found if found.tzinfo else found.replace(tzinfo=UTC)

    def part(self, name: str) -> Part:
        """An object within."""
        return Part(self._fields.get(name))

    def parts(self, name: str) -> list[Part]:
        """An array of objects within."""
        value = self._fields.get(name)
        return [Part(each) for each in cast("list[object]", value)] if isinstance(value, list) else []

    def numbers(self) -> dict[str, float]:
        """All members that are numbers."""
        found = {name: self.number(name) for name in self._fields}
        return {printable(name): value for name, value in found.items() if value is not None}


def printable(text: str) -> str:
    """``text`` with a dot for each character that moves a terminal rather than being seen."""
    return "".join(letter if letter.isprintable() else "·" for letter in text)
