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
