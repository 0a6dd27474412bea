"""Ids of messages: 32 hex digits that begin with the time, so that new ones are neighbours in an index.

The layout is that of UUID version 7 (RFC 9562): 48 bits of milliseconds, then 74 random ones. With ids that
are random throughout, each message would change a page of the index of its own, and a commit write them all.
"""

from __future__ import annotations

import secrets

_VERSION = 0x7 << 76
_VARIANT = 0b10 << 62


def new_id(wall: float) -> str:
    """An id that nothing else has; ``wall`` is the time in seconds since the epoch."""
    milliseconds = int(wall * 1000) & 0xFFFF_FFFF_FFFF
    random = secrets.randbits(74)
    value = milliseconds << 80 | _VERSION | (random >> 62) << 64 | _VARIANT | random & (1 << 62) - 1
    return f"{value:032x}"
