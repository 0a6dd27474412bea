"""The words in which room is refused: which quota, what of it is used, and what was wanted."""

from __future__ import annotations

from tensorbus.errors import LimitExceeded, QuotaExceeded


def over_bytes(quota: str, used: int, wanted: int, limit: int) -> QuotaExceeded:
    """``wanted`` bytes on top of ``used`` ones are over ``limit``."""
    return QuotaExceeded(
        f"{quota}: {used} of {limit} bytes are used and {wanted} more are wanted; "
        "delete messages, or ask for a larger quota"
    )


def over_messages(quota: str, used: int, limit: int) -> QuotaExceeded:
    """One message on top of ``used`` ones is over ``limit``."""
    return QuotaExceeded(
        f"{quota}: {used} of {limit} messages are used and 1 more is wanted; "
        "delete messages, or ask for a larger quota"
    )


def too_large(quota: str, size: int, largest: int) -> LimitExceeded:
    """A message that there would never be room for."""
    return LimitExceeded(f"{quota}: a message of {size} bytes is over the {largest} that the topic may hold")
