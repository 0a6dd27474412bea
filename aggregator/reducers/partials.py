"""Partials: the exact sums of a region's updates as a message to a higher aggregator.

Beside the scalars and byte strings of the model, under their own names, it holds

- each tensor that an update had, under the model's name for it: int64 [count, 2], each row a 128-bit integer
  in two's complement, the lower 64 bits first, which counts steps of 2^-64 (see `ExactSums`);
- one byte string ``tensorbus:partial``, a JSON object: ``version`` 1; ``totals``, the weight of each tensor;
  ``bases``, for each base id ("" is the round's model) and tensor the pieces ``[start, stop, weight]`` in
  which it has to be added; ``extras``, ``[site, number]`` of whose update each scalar or byte string is.

Weights are texts, ``numerator`` or ``numerator/denominator``, the latter a power of two: sums of floats.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import cast

from tensorbus.aggregator.coverage import CURRENT, MAX_PIECES_OF_SUMS, Coverage, Weights
from tensorbus.aggregator.extras import Key
from tensorbus.aggregator.layout import MAX_EXTRAS, Layout
from tensorbus.codecs.bases import check_base_id
from tensorbus.codecs.dtypes import dtype
from tensorbus.codecs.item import ItemSpec
from tensorbus.codecs.memory import MemoryItem
from tensorbus.errors import InvalidRequest, InvalidSpecification, LimitExceeded, ManifestMismatch

NAME = "tensorbus:partial"
VERSION = 1

MAX_BYTES = 16 << 20
"""Of the JSON."""

MAX_BITS = 512
"""Of a weight's numerator, and of its denominator."""

MAX_BASES = 256
ROUNDED = Fraction(1, 1 << 40)
"""What the float that says what sums weigh may lack."""

SMALLEST_TOTAL, LARGEST_TOTAL = Fraction(1, 1 << 24), Fraction(1 << 100)


@dataclass(frozen=True, slots=True)
class Partial:
    """What the sums of a partial message count for."""

    totals: dict[str, Fraction]
    bases: dict[str, dict[str, list[tuple[int, int, Fraction]]]]
    extras: dict[str, Key]

    def check_weight(self, weight: float) -> None:
        """Whether the sums weigh no more than their update says.

        Raises:
            InvalidRequest: they do; the tensor is named.
        """
        for name, total in self.totals.items():
            if total > Fraction(weight) * (1 + ROUNDED):
                raise InvalidRequest(
                    f"the sums of {name!r:.80} weigh {float(total):g}, more than the {weight:g} of the update"
                )

    def add_to(self, weights: Weights) -> None:
        """Enter all weights. Raises LimitExceeded as ``Weights.cover``."""
        weights.begin_sums()
        for name, total in self.totals.items():
            weights.count([name], total)
        for base, tensors in self.bases.items():
            for name, pieces in tensors.items():
                for start, stop, weight in pieces:
                    weights.cover(base, name, start, stop, weight)
        weights.end_update()


def item(weights: Weights, extras: Mapping[str, Key]) -> MemoryItem:
    """The byte string that says what exact sums count for."""
    value = {
        "version": VERSION,
        "totals": {name: str(total) for name, total in weights.totals.items()},
        "bases": {base: _pieces(coverage) for base, coverage in weights.bases.items()},
        "extras": {name: list(key) for name, key in extras.items()},
    }
    data = json.dumps(value, separators=(",", ":")).encode()
    return MemoryItem(ItemSpec(NAME, dtype("uint8"), (len(data),), "bytes"), memoryview(data))


def match(layout: Layout, manifest: Sequence[ItemSpec]) -> list[str]:
    """The tensors of which a partial message has sums.

    Raises:
        ManifestMismatch: it is no partial of this layout; the first difference is named.
        LimitExceeded: its scalars and byte strings, or its JSON, are too large.
    """
    model = {spec.name: spec for spec in layout.specs}
    there = {spec.name: spec for spec in manifest}
    if NAME not in there or there[NAME].kind != "bytes":
        raise ManifestMismatch(f"a message of exact sums has a byte string {NAME!r}, and this one has not")
    if there[NAME].count > MAX_BYTES:
        raise LimitExceeded(f"{NAME!r} is of {there[NAME].count} bytes; at most {MAX_BYTES} are read")
    tensors: list[str] = []
    for name, spec in there.items():
        if name == NAME:
            continue
        ours = model.get(name)
        if ours is None or ours.view is not None or ours.kind != spec.kind:
            raise ManifestMismatch(f"the exact sums have, unlike the model, a {spec.kind} {name!r:.100}")
        if spec.kind == "tensor":
            if (spec.dtype.name, spec.shape, spec.view) != ("int64", (ours.count, 2), None):
                raise ManifestMismatch(
                    f"the sums of {name!r} are {spec.dtype} {list(spec.shape)}, not int64 [{ours.count}, 2]"
                )
            tensors.append(name)
    extras = sum(spec.nbytes for spec in manifest if spec.kind != "tensor" and spec.name != NAME)
    if extras > MAX_EXTRAS:
        raise LimitExceeded(f"scalars and byte strings of {extras} bytes; at most {MAX_EXTRAS} are kept")
    if not tensors:
        raise ManifestMismatch("the exact sums are of no tensor")
    return tensors


def parse(data: bytes, layout: Layout, manifest: Sequence[ItemSpec]) -> Partial:
    """What the sums of this manifest, which ``match`` has judged, count for.

    Raises:
        InvalidRequest: ``data`` does not say it, or says what cannot be.
    """
    try:
        value = cast(object, json.loads(data))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{NAME!r} is not JSON: {error}") from None
    given = _object(value, "value")
    if set(given) != {"version", "totals", "bases", "extras"} or given["version"] != VERSION:
        raise InvalidRequest(f"{NAME!r} is not of version {VERSION}, with totals, bases and extras")
    counts = {spec.name: spec.count for spec in layout.specs}
    tensors = {spec.name for spec in manifest if spec.kind == "tensor"}
    totals = {name: _total(name, text) for name, text in _object(given["totals"], "totals").items()}
    if set(totals) != tensors:
        raise InvalidRequest(f"{NAME!r} gives weights of other tensors than there are sums of")
    bases = _object(given["bases"], "bases")
    if len(bases) > MAX_BASES:
        raise InvalidRequest(f"{NAME!r} names {len(bases)} bases; at most {MAX_BASES} are taken")
    found: dict[str, dict[str, list[tuple[int, int, Fraction]]]] = {}
    for base, entries in bases.items():
        _check_base(base)
        found[base] = {
            name: _checked_pieces(name, pieces, counts[name])
            for name, pieces in _object(entries, "base").items()
            if _known(name, tensors)
        }
    extras = {name: _key(name, key) for name, key in _object(given["extras"], "extras").items()}
    there = {spec.name for spec in manifest if spec.kind != "tensor" and spec.name != NAME}
    if set(extras) != there:
        raise InvalidRequest(f"{NAME!r} tells of other scalars and byte strings than there are")
    return Partial(totals, found, extras)


def _pieces(coverage: Coverage) -> dict[str, list[tuple[int, int, str]]]:
    return {
        name: [(start, stop, str(weight)) for start, stop, weight in coverage.pieces(name)]
        for name in coverage.names()
    }


def _object(value: object, what: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{NAME!r}: {what} is no JSON object")
    return cast("dict[str, object]", value)


def _fraction(value: object) -> Fraction:
    if isinstance(value, str) and len(value) < MAX_BITS:
        upper, _, lower = value.partition("/")
        try:
            numerator, denominator = int(upper), int(lower or "1")
        except ValueError:
            pass
        else:
            small = max(abs(numerator), denominator).bit_length() <= MAX_BITS
            if small and denominator > 0 and denominator & (denominator - 1) == 0:
                return Fraction(numerator, denominator)
    raise InvalidRequest(f"{NAME!r}: {value!r:.80} is no weight")


def _total(name: str, text: object) -> Fraction:
    total = _fraction(text)
    if not SMALLEST_TOTAL <= total <= LARGEST_TOTAL:
        raise InvalidRequest(f"{NAME!r}: the weight of {name!r:.80} is {float(total):g}, which cannot be")
    return total


def _check_base(base: str) -> None:
    try:
        check_base_id(base if base != CURRENT else None)
    except InvalidSpecification as error:
        raise InvalidRequest(f"{NAME!r}: {error}") from None


def _known(name: str, tensors: set[str]) -> bool:
    if name not in tensors:
        raise InvalidRequest(f"{NAME!r} covers {name!r:.80}, of which there are no sums")
    return True


def _checked_pieces(name: str, value: object, count: int) -> list[tuple[int, int, Fraction]]:
    pieces: list[tuple[int, int, Fraction]] = []
    end = 0
    if not isinstance(value, list) or len(cast("list[object]", value)) > MAX_PIECES_OF_SUMS:
        raise InvalidRequest(f"{NAME!r}: the pieces of {name!r:.80} are no list, or too many")
    for entry in cast("list[object]", value):
        piece = cast("list[object]", entry) if isinstance(entry, list) else []
        if len(piece) != 3:
            raise InvalidRequest(f"{NAME!r}: {entry!r:.80} is no piece of {name!r:.80}")
        start, stop, weight = piece
        if type(start) is not int or type(stop) is not int or not end <= start < stop <= count:
            raise InvalidRequest(f"{NAME!r}: {entry!r:.80} is no piece of {name!r:.80}, or out of order")
        pieces.append((start, stop, _fraction(weight)))
        end = stop
    return pieces


def _key(name: str, value: object) -> Key:
    key = cast("list[object]", value) if isinstance(value, list) else []
    if len(key) == 2 and isinstance(key[0], str) and type(key[1]) is int and len(key[0]) <= 64:
        return key[0], key[1]
    raise InvalidRequest(f"{NAME!r}: {value!r:.80} says not of whom {name!r:.80} is")
