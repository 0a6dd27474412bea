"""Sampling: which sites take part in a round. Everybody can tell, and nobody needs a list of the sites."""

from __future__ import annotations

from hashlib import blake2b


def is_selected(job: str, number: int, site: str, share: float) -> bool:
    """Whether a site takes part in round ``number``: each does with probability ``share``, drawn anew.

    Drawn by a hash, so that the site and the aggregator come to the same, also after a restart.
    """
    if share >= 1:
        return True
    drawn = blake2b(f"{job}/{number}/{site}".encode(), digest_size=7).digest()
    return int.from_bytes(drawn, "big") < share * (1 << 56)


def share_after(share: float, deadline: float, elapsed: float) -> float:
    """The share that takes part when a round has gone on for ``elapsed`` seconds: twice as many after each
    deadline that has passed.

    A draw may bring fewer sites than the quorum, and nobody knows how many there are to draw from; so others
    step in, and a round ends as long as there are enough sites at all.
    """
    passed = min(64, max(0.0, elapsed) // deadline)
    return min(1.0, share * 2.0**passed)
