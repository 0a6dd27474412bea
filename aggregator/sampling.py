"""Sampling: which sites take part in a round. Everybody can tell, and nobody needs a list of the sites."""

from __future__ import annotations

from hashlib import blake2b

_MANY = 1e9
"""Deadlines beyond which they are not counted; the least deadline is next to nothing."""


def is_selected(job: str, number: int, site: str, share: float) -> bool:
    """Whether a site takes part in round ``number``: each does with probability ``share``, drawn anew.

    Drawn by a hash, so that the site and the aggregator come to the same, also after a restart.
    """
    return share >= 1 or _draw(job, number, site) < share


def drawn_after(job: str, number: int, site: str, share: float) -> int:
    """How many deadlines pass before a site steps in; 0 if it was selected. After each of them, twice the
    share takes part.

    A draw may bring fewer sites than the quorum, and nobody knows how many there are to draw from; so others
    step in, and a round ends as long as there are enough sites at all.
    """
    deadlines = 0
    while not is_selected(job, number, site, share):
        share, deadlines = 2 * share, deadlines + 1
    return deadlines


def deadlines_in(seconds: float, deadline: float) -> int:
    """How many deadlines pass in so many seconds; none in -Inf, before a round has begun."""
    return int(min(max(0.0, seconds / deadline), _MANY))


def _draw(job: str, number: int, site: str) -> float:
    """Uniform in [0, 1)."""
    digest = blake2b(f"{job}/{number}/{site}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big") / (1 << 48)
