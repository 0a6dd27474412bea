"""Links and queues in virtual time, as fluids: many transfers at once, whole arrays of them.

A link is shared max-min fairly, which is what TCP comes near to over a long time: each transfer gets an equal
share, but no more than its own limit, and what one cannot use the others get (Bertsekas, Gallager: Data
Networks, section 6.5.2).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

TOLERANCE = 0.01
"""What lies within this share of the time since the first begin happens in one step."""


def shared(begins: Floats, sizes: Floats, limits: Floats, capacity: float) -> Floats:
    """When each transfer ends.

    Args:
        begins: seconds.
        sizes: bytes of each.
        limits: bytes/s that each may have at most, such as the uplink of its site.
        capacity: bytes/s of the link; ``inf`` if it is no limit.

    Raises:
        ValueError: a limit or the capacity is not positive.
    """
    if not (limits > 0).all() or not capacity > 0:
        raise ValueError("limits and capacities of links are positive")
    if limits.sum() <= capacity:
        return begins + sizes / limits
    order = np.argsort(limits, kind="stable")  # water is filled into the narrowest first
    limit, left = limits[order], sizes[order].astype(np.float64)
    begin, ends = begins[order], np.empty(len(order))
    arrivals = np.unique(begin)
    active = np.zeros(len(order), bool)
    waiting = left > 0
    ends[~waiting] = begin[~waiting]
    now, first, at = float(arrivals[0]), float(arrivals[0]), 0
    while waiting.any() or active.any():
        while at < len(arrivals) and arrivals[at] <= now:
            at += 1
        joining = waiting & (begin <= now)
        active |= joining
        waiting &= ~joining
        horizon = float(arrivals[at]) if at < len(arrivals) else math.inf
        if not active.any():
            now = horizon
            continue
        running = np.flatnonzero(active)
        rates = fair_rates(limit[running], capacity)
        needed = left[running] / rates
        near = TOLERANCE * (now - first)
        step = min(float(needed.min()) + near, max(horizon - now, near))
        done = needed <= step
        ends[running[done]] = now + needed[done]
        active[running[done]] = False
        left[running[~done]] -= rates[~done] * step
        now += step
    result = np.empty(len(order))
    result[order] = ends
    return result


def fair_rates(limits: Floats, capacity: float) -> Floats:
    """The max-min fair rates of transfers with these limits, in ascending order of them; bytes/s."""
    count = len(limits)
    before = np.concatenate(([0.0], np.cumsum(limits)[:-1]))
    shares = (capacity - before) / np.arange(count, 0, -1)
    wide = limits > shares  # from the first such on, each gets the share that is left there
    if not wide.any():
        return limits
    first = int(np.argmax(wide))
    rates = limits.copy()
    rates[first:] = shares[first]
    return rates


def served(arrivals: Floats, seconds: float) -> Floats:
    """When each of a queue of one server is done, each taking ``seconds``, the first come first."""
    order = np.argsort(arrivals, kind="stable")
    places = np.arange(len(order))
    done = np.maximum.accumulate(arrivals[order] - seconds * places) + seconds * (places + 1)
    result = np.empty(len(order))
    result[order] = done
    return result
