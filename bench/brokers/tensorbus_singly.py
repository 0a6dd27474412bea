"""Tensorbus over HTTP on plain sockets, a request for each small message, as curl and others send them."""

from __future__ import annotations

from .load import Load
from .tensorbus_raw import publish_small_singly, subscribe_small

__all__ = ["publish_small", "subscribe_small"]


def publish_small(load: Load) -> None:
    """Many small messages, a request each."""
    publish_small_singly(load)
