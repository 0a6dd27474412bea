"""Staleness: what an update counts for that was trained from an older model than the round's."""

from __future__ import annotations


def discount(behind: int, alpha: float) -> float:
    """The factor of an update that is ``behind`` rounds late: ``(1 + behind) ** -alpha``, 1 when it is not.

    The polynomial weight of FedAsync (Xie et al. 2019), which FedBuff uses with alpha = 0.5.
    """
    return 1.0 if behind == 0 else float((1 + behind) ** -alpha)
