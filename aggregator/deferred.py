"""Deferred: residuals that advance later than their message is acknowledged.

An update that the broker has may still be refused by the aggregator. Its residuals are therefore left sealed,
and committed when the next update is made, by which time its fate is known.
"""

from __future__ import annotations

from tensorbus.codecs.residuals import ResidualPass, Residuals


class Deferred(Residuals):
    """What a publication is given instead of ``residuals``: all but the commit."""

    def __init__(self, residuals: Residuals) -> None:
        self._residuals = residuals

    def begin(self, key: str) -> ResidualPass:
        return self._residuals.begin(key)

    def commit(self) -> None:
        """Not yet."""

    def unresolved(self) -> str | None:
        """The caller has seen to it."""
        return None
