"""What to say where a framework is not installed."""

from __future__ import annotations

from tensorbus.errors import MissingPackage


def missing(extra: str, error: ImportError) -> MissingPackage:
    """The error to raise where importing a framework failed with ``error``.

    Args:
        extra: of Tensorbus that brings the framework.
    """
    return MissingPackage(
        f"tensorbus.integrations.{extra} needs the package {(error.name or extra).partition('.')[0]!r}: "
        f"pip install 'tensorbus[{extra}]' ({error})"
    )
