"""The query part of a request's address."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from tensorbus.errors import InvalidRequest


class Query:
    """Reads parameters by type. Unknown or repeated ones are refused: a typo must not select everything."""

    def __init__(self, request: web.Request, allowed: Sequence[str]) -> None:
        self._given = request.query
        for name in self._given:
            if name not in allowed:
                raise InvalidRequest(f"unknown parameter {name[:40]!r}; known are {', '.join(allowed)}")
            if len(self._given.getall(name)) > 1:
                raise InvalidRequest(f"parameter {name!r} is given more than once")

    def text(self, name: str, default: str) -> str:
        """As it was given."""
        return self._given.get(name, default)

    def choice(self, name: str, choices: Sequence[str], default: str) -> str:
        """One of ``choices``, else InvalidRequest."""
        value = self._given.get(name, default)
        if value not in choices:
            raise InvalidRequest(f"parameter {name!r} must be one of {', '.join(choices)}")
        return value

    def integer(self, name: str, low: int, high: int, default: int) -> int:
        """A decimal integer within bounds, else InvalidRequest."""
        value = self.integer_or_none(name, low, high)
        return default if value is None else value

    def integer_or_none(self, name: str, low: int, high: int) -> int | None:
        """As ``integer``; None if it is not given."""
        text = self._given.get(name)
        if text is None:
            return None
        # No int() of thousands of digits: 19 are enough for 64 bits.
        if not (text.isascii() and text.isdigit() and len(text) <= 19 and low <= int(text) <= high):
            raise InvalidRequest(f"parameter {name!r} must be an integer from {low} to {high}")
        return int(text)
