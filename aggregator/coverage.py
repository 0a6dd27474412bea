"""Coverage: with what weight the base goes into each element of a sum of changes.

An update that is a change from the base counts with its weight wherever it is one: mostly everywhere, but a
slice that came whole needs no base. So the weight of the base is constant piece by piece. Adjacent slices
of one update are joined before they are entered, so that where all of a tensor is a change it is one piece.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from tensorbus.errors import LimitExceeded

MAX_PIECES = 1 << 16
"""Of all tensors together; honest updates have at most one for each slice of the model."""


class Coverage:
    """The weights of one round, by tensor."""

    def __init__(self) -> None:
        self._bounds: dict[str, list[int]] = {}
        self._weights: dict[str, list[float]] = {}
        self._pieces = 0
        self._run: tuple[str, int, int, float] | None = None

    def add(self, name: str, start: int, stop: int, weight: float) -> None:
        """Elements ``start`` to ``stop`` of the tensor ``name`` are a change that counts with ``weight``.

        Raises:
            LimitExceeded: there are too many pieces; only ``clear`` helps now.
        """
        if self._run is not None and self._run[0] == name and self._run[2:] == (start, weight):
            self._run = name, self._run[1], stop, weight
            return
        self.end_update()
        self._run = name, start, stop, weight

    def end_update(self) -> None:
        """Enter what was joined so far; no slice of a later update is adjacent to it. Raises as ``add``."""
        if self._run is None:
            return
        name, start, stop, weight = self._run
        self._run = None
        bounds = self._bounds.setdefault(name, [])
        weights = self._weights.setdefault(name, [])
        before = len(bounds)
        first, last = _cut(bounds, weights, start), _cut(bounds, weights, stop)
        self._pieces += len(bounds) - before
        if self._pieces > MAX_PIECES:
            raise LimitExceeded(f"the updates are changes in more than {MAX_PIECES} pieces")
        for place in range(first, last):
            weights[place] += weight

    def clear(self) -> None:
        """Forget every update."""
        self._bounds.clear()
        self._weights.clear()
        self._pieces = 0
        self._run = None

    def __bool__(self) -> bool:
        return bool(self._bounds) or self._run is not None

    def pieces(self, name: str, start: int, stop: int) -> Iterator[tuple[int, int, float]]:
        """Bounds and weight of the pieces within ``start`` to ``stop``; nothing where no change was."""
        bounds, weights = self._bounds.get(name, []), self._weights.get(name, [])
        for place in range(max(0, bisect_right(bounds, start) - 1), len(bounds) - 1):
            if bounds[place] >= stop:
                return
            if weights[place] and bounds[place + 1] > start:
                yield max(start, bounds[place]), min(stop, bounds[place + 1]), weights[place]


def _cut(bounds: list[int], weights: list[float], at: int) -> int:
    """Make ``at`` a bound; its place. ``weights[i]`` is that of ``bounds[i]`` to ``bounds[i + 1]``."""
    place = bisect_left(bounds, at)
    if place == len(bounds) or bounds[place] != at:
        bounds.insert(place, at)
        weights.insert(place, weights[place - 1] if 0 < place < len(bounds) - 1 else 0.0)
    return place
