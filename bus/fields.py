"""Reads the fields of a JSON object that came from outside, each with its type and limits. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import cast

from tensorbus.errors import InvalidRequest, LimitExceeded


def to_iso(moment: datetime) -> str:
    """ISO 8601 in UTC with microseconds, ending in ``Z``."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class Fields:
    """A JSON object whose fields are taken by type; a missing or ill-typed one raises InvalidRequest."""

    def __init__(self, document: object, what: str, allowed: Sequence[str] | None = None) -> None:
        if not isinstance(document, Mapping):
            raise InvalidRequest(f"{what}: expected a JSON object, got {type(document).__name__}")
        self.document = cast(Mapping[str, object], document)
        self.what = what
        if allowed is not None:
            unknown = [str(name)[:40] for name in self.document if name not in allowed]
            if unknown:
                raise InvalidRequest(f"{what}: unknown field {unknown[0]!r}; known are {', '.join(allowed)}")

    def _wrong(self, name: str, expected: str) -> InvalidRequest:
        if name not in self.document:
            return InvalidRequest(f"{self.what}: field {name!r} is missing; it must be {expected}")
        return InvalidRequest(
            f"{self.what}: field {name!r} must be {expected}, not {type(self.document[name]).__name__}"
        )

    def text(self, name: str) -> str:
        """A string."""
        value = self.document.get(name)
        if not isinstance(value, str):
            raise self._wrong(name, "a string")
        return value

    def text_or_none(self, name: str) -> str | None:
        """A string; None if it is null or missing."""
        return None if self.document.get(name) is None else self.text(name)

    def choice(self, name: str, choices: Sequence[str], default: str | None = None) -> str:
        """One of ``choices``; ``default`` if it is null or missing and there is one."""
        value = self.document.get(name)
        if value is None and default is not None:
            return default
        if value not in choices:
            raise self._wrong(name, "one of " + ", ".join(choices))
        return cast(str, value)

    def integer(
        self, name: str, at_least: int = 0, at_most: int = 2**63 - 1, default: int | None = None
    ) -> int:
        """An integer within bounds; ``default`` if it is null or missing and there is one."""
        value = self.document.get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, float) and value.is_integer():
            # JSON does not tell 1.0 from 1, and nor does JSON Schema.
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(name, "an integer")
        if not at_least <= value <= at_most:
            raise InvalidRequest(f"{self.what}: field {name!r} must be {at_least} to {at_most}")
        return value

    def integer_or_none(self, name: str) -> int | None:
        """A non-negative integer; None if it is null or missing."""
        return None if self.document.get(name) is None else self.integer(name)

    def number(self, name: str, at_least: float, at_most: float, default: float | None = None) -> float:
        """A finite number of seconds or the like, within bounds."""
        value = self.document.get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(name, "a number")
        if not (at_least <= value <= at_most):
            raise InvalidRequest(f"{self.what}: field {name!r} must be {at_least} to {at_most}")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """A bool; ``default`` if it is null or missing."""
        value = self.document.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def mapping(self, name: str) -> Mapping[str, object]:
        """A JSON object."""
        value = self.document.get(name)
        if not isinstance(value, Mapping):
            raise self._wrong(name, "an object")
        return cast(Mapping[str, object], value)

    def array(self, name: str) -> Sequence[object]:
        """A JSON array."""
        value = self.document.get(name)
        if not isinstance(value, list):
            raise self._wrong(name, "an array")
        return cast(Sequence[object], value)

    def moment(self, name: str) -> datetime:
        """An ISO 8601 time with its offset; returned in UTC."""
        try:
            moment = datetime.fromisoformat(self.text(name))
        except ValueError:
            raise self._wrong(name, "an ISO 8601 time") from None
        if moment.tzinfo is None:
            raise InvalidRequest(f"{self.what}: time {name!r} has no offset from UTC")
        try:
            return moment.astimezone(UTC)
        except OverflowError:
            raise InvalidRequest(f"{self.what}: time {name!r} is not in the years 1 to 9999 of UTC") from None

    def moment_or_none(self, name: str) -> datetime | None:
        """As ``moment``; None if it is null or missing."""
        return None if self.document.get(name) is None else self.moment(name)

    def scalars(self, max_entries: int, max_bytes: int) -> dict[str, str | int | float | bool | None]:
        """The whole object as a flat map of text, numbers, bools and null.

        Raises:
            LimitExceeded: more than ``max_entries``, or names and texts over ``max_bytes`` of UTF-8.
            InvalidRequest: a name is no string, a value is nested, or a number is NaN, Inf or over 64 bits.
        """
        if len(self.document) > max_entries:
            raise LimitExceeded(f"{self.what}: {len(self.document)} entries; allowed are {max_entries}")
        found: dict[str, str | int | float | bool | None] = {}
        size = 0
        for name, value in cast(Mapping[object, object], self.document).items():
            if not isinstance(name, str) or not isinstance(value, str | int | float | bool | None):
                raise InvalidRequest(
                    f"{self.what}: {str(name)[:40]!r} must be text, a number, a bool or null, "
                    f"not {type(value).__name__}"
                )
            if isinstance(value, int) and not -(2**63) <= value < 2**64:
                raise InvalidRequest(f"{self.what}: {name[:40]!r} is an integer of more than 64 bits")
            if isinstance(value, float) and not math.isfinite(value):
                raise InvalidRequest(f"{self.what}: {name[:40]!r} is not a finite number")
            size += len(name.encode("utf-8", "surrogatepass"))
            size += len(value.encode("utf-8", "surrogatepass")) if isinstance(value, str) else 8
            found[name] = value
        if size > max_bytes:
            raise LimitExceeded(f"{self.what}: {size} bytes; allowed are {max_bytes}")
        return found
