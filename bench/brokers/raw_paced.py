"""As `raw`, with whatever congestion control the system is set to: on many it spaces segments in time."""

from __future__ import annotations

from . import raw
from .load import Load


def publish(load: Load) -> None:
    """See `raw.publish`."""
    raw.publish(load, paced=True)


def subscribe(load: Load) -> None:
    """See `raw.subscribe`."""
    raw.subscribe(load, paced=True)
