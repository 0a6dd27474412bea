"""Weights of a round: of each tensor, and with what weight each base goes into each of its elements.

An update that is a change from a base counts with its weight wherever it is one: mostly everywhere, but a
slice that came whole needs no base. So the weight of a base is constant piece by piece. Adjacent slices
of one update are joined before they are entered, so that where all of a tensor is a change it is one piece.

Weights are floats, added in the order in which updates come; or exact fractions of those, whose sums are the
same in every order.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from fractions import Fraction

from tensorbus.errors import LimitExceeded

MAX_PIECES = 1 << 14
"""That one update may add, in all tensors together. An honest one adds at most one for each of its slices,
and none where another one was cut like it."""

MAX_PIECES_OF_SUMS = 1 << 16
"""The same of a region's sums, which bring those of many updates."""

MAX_PIECES_OF_ALL = 1 << 18
"""Of all updates of a round, whatever they are changes from: tens of MB."""

MAX_BASES = 256
"""Models that the updates of a round may be changes from."""

CURRENT = ""
"""Stands for the base that is the open round's model."""

Weight = float | Fraction
Piece = tuple[int, int, float]
"""First element, the one after the last, and what is to be done with those in between."""


class Count:
    """How many pieces there are: of the update that is being entered, and of all.

    So one update in crumbs is refused itself, and leaves room for the others.
    """

    def __init__(self) -> None:
        self.all = 0
        self.begin(MAX_PIECES)

    def begin(self, most: int) -> None:
        """Another update, which may add so many."""
        self.update, self.most = 0, most

    def add(self, pieces: int) -> None:
        """So many more. Raises LimitExceeded: too many."""
        self.update += pieces
        self.all += pieces
        if self.update > self.most:
            raise LimitExceeded(f"the update is a change in more than {self.most} pieces")
        if self.all > MAX_PIECES_OF_ALL:
            raise LimitExceeded(
                f"the updates of the round are changes in more than {MAX_PIECES_OF_ALL} pieces"
            )


class Coverage:
    """The weights of one base, by tensor.

    Args:
        count: of the pieces of all bases together.
    """

    def __init__(self, count: Count | None = None) -> None:
        self._bounds: dict[str, list[int]] = {}
        self._weights: dict[str, list[Weight]] = {}
        self._count = count or Count()
        self._run: tuple[str, int, int, Weight] | None = None

    def add(self, name: str, start: int, stop: int, weight: Weight) -> None:
        """In elements ``start`` to ``stop`` of the tensor ``name`` the base counts with ``weight``.

        Raises:
            LimitExceeded: there are too many pieces; only a new one helps now.
        """
        if self._run is not None and self._run[0] == name and self._run[2:] == (start, weight):
            self._run = name, self._run[1], stop, weight
            return
        self.enter()
        self._run = name, start, stop, weight

    def end_update(self) -> None:
        """Enter what was joined so far; no slice of a later update is adjacent to it. Raises as ``add``."""
        self.enter()
        self._count.begin(MAX_PIECES)

    def enter(self) -> None:
        """Enter what was joined so far. Raises as ``add``."""
        if self._run is None:
            return
        name, start, stop, weight = self._run
        self._run = None
        bounds = self._bounds.setdefault(name, [])
        weights = self._weights.setdefault(name, [])
        before = len(bounds)
        first, last = _cut(bounds, weights, start), _cut(bounds, weights, stop)
        self._count.add(len(bounds) - before)
        for place in range(first, last):
            weights[place] += weight

    def names(self) -> list[str]:
        """The tensors that the base goes into somewhere."""
        return [name for name, weights in self._weights.items() if any(weights)]

    def __bool__(self) -> bool:
        return self._run is not None or bool(self.names())

    def pieces(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, int, Weight]]:
        """Bounds and weight of the pieces within ``start`` to ``stop``, where the base has a weight."""
        bounds, weights = self._bounds.get(name, []), self._weights.get(name, [])
        for place in range(max(0, bisect_right(bounds, start) - 1), len(bounds) - 1):
            if stop is not None and bounds[place] >= stop:
                return
            if weights[place] and bounds[place + 1] > start:
                end = bounds[place + 1] if stop is None else min(stop, bounds[place + 1])
                yield max(start, bounds[place]), end, weights[place]


class Weights:
    """The weights of a round, as floats or, if ``exact``, as fractions."""

    def __init__(self, exact: bool = False) -> None:
        self.exact = exact
        self.totals: dict[str, Weight] = {}
        self.bases: dict[str, Coverage] = {}
        self._count = Count()

    def number(self, weight: float) -> Weight:
        """A weight as it is added up here."""
        return Fraction(weight) if self.exact else weight

    def count(self, names: Iterable[str], weight: Weight) -> None:
        """An update of this weight has these tensors."""
        for name in names:
            self.totals[name] = self.totals[name] + weight if name in self.totals else weight

    def begin_sums(self) -> None:
        """A region's sums follow, up to ``end_update``."""
        self._count.begin(MAX_PIECES_OF_SUMS)

    def cover(self, base: str, name: str, start: int, stop: int, weight: Weight) -> None:
        """The base counts there with this weight, besides. Raises LimitExceeded as ``Coverage.add``."""
        if base not in self.bases:
            if len(self.bases) > MAX_BASES:
                raise LimitExceeded(f"the updates are changes from more than {MAX_BASES} models")
            self.bases[base] = Coverage(self._count)
        self.bases[base].add(name, start, stop, weight)

    def end_update(self) -> None:
        """See `Coverage`."""
        for coverage in self.bases.values():
            coverage.enter()
        self._count.begin(MAX_PIECES)

    def clear(self) -> None:
        """Forget every update."""
        self.totals.clear()
        self.bases.clear()
        self._count = Count()

    def late(self) -> list[str]:
        """The bases that are wanted, but for the current one, in a fixed order."""
        return sorted(base for base, coverage in self.bases.items() if base != CURRENT and coverage)

    def names(self, base: str) -> set[str]:
        """The tensors that ``base`` goes into."""
        return set(self.bases[base].names()) if base in self.bases else set()

    def total(self, name: str) -> float:
        """Of the updates that have this tensor; 0 if none has."""
        return float(self.totals.get(name, 0.0))

    def pieces(self, base: str, name: str, start: int, stop: int) -> list[Piece]:
        """Where the base goes in between ``start`` and ``stop``, and with what weight."""
        if base not in self.bases:
            return []
        found = self.bases[base].pieces(name, start, stop)
        return [(first, end, float(weight)) for first, end, weight in found]

    def shares(self, name: str, start: int, stop: int) -> list[Piece]:
        """The same of the current base, with its share of the tensor's total: 1 where it is all of it."""
        if CURRENT not in self.bases:
            return []
        found = self.bases[CURRENT].pieces(name, start, stop)
        total = self.totals[name]
        return [(first, end, float(weight / total)) for first, end, weight in found]


def _cut(bounds: list[int], weights: list[Weight], at: int) -> int:
    """Make ``at`` a bound; its place. ``weights[i]`` is that of ``bounds[i]`` to ``bounds[i + 1]``."""
    place = bisect_left(bounds, at)
    if place == len(bounds) or bounds[place] != at:
        bounds.insert(place, at)
        weights.insert(place, weights[place - 1] if 0 < place < len(bounds) - 1 else 0)
    return place
