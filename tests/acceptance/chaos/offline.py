"""The model that a round of a deterministic job has to end with, computed with Python's own integers.

No reducer is used: frames are read and decoded, and what is computed then is what docs and docstrings say.
Each product w·x, rounded to float64, is rounded to a multiple of 2^-64, half to even; sums, weights and the
one division are exact, and rounded once.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorbus.aggregator.encoded_update import EncodedUpdate

from .training import Arrays

STEP = 64
"""Sums are multiples of 2^-64."""

Doubles = npt.NDArray[np.float64]


@dataclass
class Sent:
    """One tensor of a message as float64: its values, or, in the pieces from start to stop, changes."""

    values: Doubles
    dtype: np.dtype[Any]
    changes: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])


@dataclass(frozen=True)
class Counted:
    """An update in a roster."""

    tensors: Mapping[str, Sent]
    weight: float
    version: int


def read(path: Path) -> dict[str, Sent]:
    """The tensors of a message body, flat."""
    return asyncio.run(_read(EncodedUpdate(path)))


def read_model(path: Path) -> Arrays:
    """The same of a model, which was sent whole, in the dtypes that it has."""
    found = read(path)
    assert not any(sent.changes for sent in found.values())
    return {name: sent.values.astype(sent.dtype) for name, sent in found.items()}


async def _read(message: EncodedUpdate) -> dict[str, Sent]:
    found = {spec.name: Sent(np.zeros(spec.count), np.dtype(spec.dtype.name)) for spec in message.manifest}
    async for event in message.slices():
        sent, codec = found[event.spec.name], event.codec
        start, stop = event.offset, event.offset + event.count
        if codec.needs_base(event.payload):
            sent.changes.append((start, stop))
            if not event.payload:
                continue  # nothing has changed here
            codec = codec.change()
        out = np.zeros(event.count, np.dtype(codec.dtype.name))
        codec.decode(event.payload, event.offset, out.view(np.uint8).data)
        sent.values[start:stop] = out
    return found


def weight_of(examples: float, behind: int, alpha: float) -> float:
    """What an update counts for that is ``behind`` rounds late."""
    return examples if behind == 0 else examples * float((1 + behind) ** -alpha)


def aggregate(number: int, models: Mapping[int, Arrays], counted: Sequence[Counted]) -> Arrays:
    """The model after round ``number``.

    Args:
        models: that of the round and those of the earlier versions, flat.
        counted: the updates in the roster.
    """
    made: Arrays = {}
    for name, current in models[number].items():
        of = [update for update in counted if name in update.tensors]
        made[name] = _tensor(name, number, models, of) if of else current
    return made


def _tensor(
    name: str, number: int, models: Mapping[int, Arrays], counted: Sequence[Counted]
) -> npt.NDArray[Any]:
    current = models[number][name]
    means = np.zeros(current.size)
    total = sum((Fraction(update.weight) for update in counted), Fraction(0))
    for start, stop in _pieces(name, current.size, counted):
        part = slice(start, stop)
        sums = [0] * (stop - start)
        bases: dict[int, Fraction] = {}
        for update in counted:
            sent, weight = update.tensors[name], Fraction(update.weight)
            _add(sums, sent.values[part], update.weight)
            if any(first <= start < last for first, last in sent.changes):
                bases[number] = bases.get(number, Fraction(0)) + weight
            elif update.version != number:
                bases[number] = bases.get(number, Fraction(0)) + weight
                bases[update.version] = bases.get(update.version, Fraction(0)) - weight
        share = bases.pop(number, Fraction(0)) / total
        for version, weight in bases.items():
            _add(sums, models[version][name][part], float(weight))
        means[part] = _quotients(sums, float(total))
        if share:
            means[part] = np.where(means[part] == 0, -0.0, means[part]) + current[part].astype(
                np.float64
            ) * float(share)
    return _rounded(means, current.dtype)


def _pieces(name: str, size: int, counted: Sequence[Counted]) -> Iterator[tuple[int, int]]:
    """Where one weight holds: between the bounds of all changes."""
    bounds = {0, size}
    for update in counted:
        bounds.update(bound for change in update.tensors[name].changes for bound in change)
    ordered = sorted(bounds)
    return pairwise(ordered)


def _add(sums: list[int], values: npt.NDArray[Any], weight: float) -> None:
    steps = np.rint(np.ldexp(values.astype(np.float64) * weight, STEP))  # exact but for the rounding to whole
    for at, step in enumerate(steps.tolist()):
        sums[at] += int(step)


def _quotients(sums: Sequence[int], total: float) -> Doubles:
    """``sums * 2^-64 / total``; Python divides whole numbers correctly rounded."""
    above, below = total.as_integer_ratio()
    divisor = above << STEP
    return np.array([value * below / divisor for value in sums])


def _rounded(means: Doubles, to: np.dtype[Any]) -> npt.NDArray[Any]:
    if to.kind == "f":
        return means if to == np.float64 else means.astype(np.float32).astype(to)
    assert math.isfinite(float(np.abs(means).max()))
    return np.rint(means).astype(to)
