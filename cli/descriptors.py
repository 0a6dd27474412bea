"""How many files and connections a process may have open."""

from __future__ import annotations

import logging
import resource
from contextlib import suppress

log = logging.getLogger("tensorbus.serve")

_OTHERS = 128
"""Descriptors for everything but connections that are served: rows, logs, those being turned away."""
_FEW = 1024
"""Connections below which whoever runs the broker should do something about it."""
_EACH = 3
"""Of a transfer: its connection, a duplicate that a thread works on, and the file."""


def raise_descriptor_limit() -> None:
    """As far as the system lets this process: the usual 1,024 would be used up by as many clients."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Some systems name a hard limit that they do not grant.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connections_within_limit(wanted: int) -> int:
    """How many of so many connections there can be without ever running out of descriptors.

    Without them the system would refuse to accept one, and those who wait would not be told.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    possible = max(1, (soft - _OTHERS) // _EACH)
    if possible < wanted:
        log.log(
            logging.WARNING if possible < _FEW else logging.INFO,
            "the system grants %d open files (ulimit -n), enough for %d connections at a time and not for "
            "%d; more are refused",
            soft,
            possible,
            wanted,
        )
    return min(wanted, possible)
