"""Median, trimmed mean and Krum: against numpy on whole models, in every order, dtype and encoding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelling.federated import Array, BFloat16, Federation, bfloat16
from tensorbus.aggregator.reducers.base import Workspace
from tensorbus.aggregator.reducers.krum import scores
from tensorbus.aggregator.reducers.sorting import network, sort_rows
from tensorbus.aggregator.reducers.spec import ReducerSpec
from tensorbus.aggregator.updates import NotEnoughUpdates
from tensorbus.errors import ManifestMismatch, NonFiniteValues

WORKSPACE = Workspace(lambda: Path("unused"))
CODECS = ["none", "nf4", "delta | nf4", "delta | none", "same | none"]
Doubles = npt.NDArray[np.float64]


def doubles(value: object) -> Doubles:
    """An array of whatever kind as float64."""
    return np.asarray(value.values if isinstance(value, BFloat16) else value, np.float64)


async def reduced(text: str, federation: Federation, order: Sequence[int] | None = None) -> dict[str, Array]:
    """The next model."""
    reducer = ReducerSpec.parse(text).build(federation.layout, WORKSPACE)
    try:
        made = await federation.round(reducer, order)
    finally:
        await reducer.aclose()
    return {name: value for name, value in made.items() if isinstance(value, np.ndarray)}


async def decoded(federation: Federation) -> list[dict[str, Doubles]]:
    """What each update says, by the mean of it alone: x, or b + c; in the order of the sites."""
    found: list[dict[str, Doubles]] = []
    every = federation.updates
    for one in sorted(every, key=lambda update: update[1].site):
        federation.updates = [one]
        found.append({name: doubles(value) for name, value in (await reduced("mean", federation)).items()})
    federation.updates = every
    return found


def model(random: np.random.Generator, spread: float = 1.0, kinds: str = "fhdbx") -> dict[str, object]:
    """Tensors of several dtypes, of more than a piece and of none."""
    every: dict[str, object] = {
        "f": (spread * random.normal(size=(37, 31))).astype(np.float32),
        "h": bfloat16(spread * random.normal(size=515)),
        "d": spread * random.normal(size=(3, 5)),
        "x": random.integers(-9, 9, 6),
        "b": random.random(20) > 0.5,
    }
    return {name: every[name] for name in kinds} | {"e": np.empty((0, 4), np.float32)}


TOLERANCES = {"f": 1e-6, "h": 2**-8, "d": 1e-12}


def check(made: dict[str, Array], wanted: dict[str, Doubles]) -> None:
    """Equal but for the rounding to each dtype."""
    for name, value in wanted.items():
        if name == "b":
            assert np.array_equal(made[name], value > 0.5)
        elif name == "x":
            assert np.array_equal(made[name], np.rint(value))
        elif name in TOLERANCES:
            close = np.allclose(doubles(made[name]), value, rtol=TOLERANCES[name], atol=TOLERANCES[name])
            assert close, name


def trimmed(rows: Doubles, share: float) -> Doubles:
    """The trimmed mean of each column, by sorting."""
    cut = int(share * len(rows) + 1e-9)
    return np.sort(rows, axis=0)[cut : len(rows) - cut].mean(axis=0)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(1, 9),
    codecs=st.lists(st.sampled_from(CODECS), min_size=1, max_size=3),
    frame=st.sampled_from([1 << 20, 1500]),
)
async def test_median_and_trimmed_mean_are_those_of_each_number(
    seed: int, count: int, codecs: list[str], frame: int
) -> None:
    """Whatever the updates are encoded with, however they are cut, in whatever order they come."""
    random = np.random.default_rng(seed)
    federation = Federation()
    federation.model(3, model(random))
    for at in range(count):
        frame_bytes = frame if at % 2 else 1 << 20
        federation.update(f"site{at}", model(random), codecs[at % len(codecs)], frame_bytes=frame_bytes)
    rows = await decoded(federation)
    stacks = {name: np.stack([one[name] for one in rows]) for name in rows[0]}
    for text, wanted in (
        ("median", {name: np.asarray(np.median(stack, axis=0)) for name, stack in stacks.items()}),
        ("trimmed:0.25", {name: trimmed(stack, 0.25) for name, stack in stacks.items()}),
    ):
        made = await reduced(text, federation)
        check(made, wanted)
        again = await reduced(text, federation, list(random.permutation(count)))
        assert all(np.array_equal(made[name], again[name]) for name in made)


@pytest.mark.parametrize("text", ["median", "trimmed:0.2", "krum:1", "multi-krum:1"])
@pytest.mark.parametrize("codec", ["none", "delta | nf4", "same | none"])
async def test_a_round_in_which_nothing_changed_gives_the_very_same_model(text: str, codec: str) -> None:
    """Bit for bit, denormal numbers included, for even and odd numbers of updates."""
    model: dict[str, Any] = {
        "f": np.array([1.1, -0.7, 1e-45, 3e38, 1e30] * 80, np.float32),
        "d": np.array([0.1, -1e-320, 1e300] * 30),
        "h": bfloat16(np.array([1 / 3, 1e-40] * 50)),
    }
    for count in (5, 6):
        federation = Federation()
        federation.model(3, model)
        for at in range(count):
            federation.update(f"s{at}", model, codec)
        made = await reduced(text, federation)
        assert np.array_equal(made["f"].view(np.uint32), model["f"].view(np.uint32))
        assert np.array_equal(made["d"].view(np.uint64), model["d"].view(np.uint64))
        assert np.array_equal(doubles(made["h"]), doubles(model["h"]))


def nearest(rows: Doubles, f: int) -> list[int]:
    """The places by Krum's score, the best first, from all pairs of differences."""
    count = len(rows)
    sums: list[float] = []
    for at in range(count):
        distances = sorted(float(((rows[at] - rows[to]) ** 2).sum()) for to in range(count) if to != at)
        sums.append(sum(distances[: count - f - 2]))
    return sorted(range(count), key=lambda at: sums[at])


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    f=st.integers(0, 2),
    more=st.integers(0, 3),
    codec=st.sampled_from(CODECS),
)
async def test_krum_takes_the_updates_nearest_to_others(seed: int, f: int, more: int, codec: str) -> None:
    """As computed from all pairs of whole models; f of the updates are far out, and huge."""
    random = np.random.default_rng(seed)
    count = 2 * f + 3 + more
    federation = Federation()
    start = model(random, kinds="fd")
    federation.model(3, start)
    bad = set(random.permutation(count)[:f].tolist())
    for at in range(count):
        spread = 1e12 if at in bad else 0.1
        change = model(random, spread, "fd")
        moved = {name: (doubles(start[name]) + doubles(change[name])) for name in "fd"}
        update = {name: moved[name].astype(np.asarray(start[name]).dtype) for name in "fd"}
        federation.update(f"site{at}", update | {"e": start["e"]}, codec)
    rows = await decoded(federation)
    flat = np.stack([np.concatenate([one[name].reshape(-1) for name in "fd"]) for one in rows])
    best = nearest(flat, f)
    made = await reduced(f"krum:{f}", federation)
    check(made, rows[best[0]])
    assert not bad & set(best[: count - f])
    made = await reduced(f"multi-krum:{f}", federation)
    check(made, {name: np.mean([rows[at][name] for at in best[: count - f]], axis=0) for name in rows[0]})


def test_an_endless_update_does_not_spoil_the_distances_of_others() -> None:
    """Products that overflow make that one far from all, and NaN nowhere."""
    rows = np.array([[1.0, 0.0], [1.1, 0.0], [0.9, 0.1], [1.0, 0.1], [1e200, 1e200]])
    with np.errstate(over="ignore"):
        found = scores(rows @ rows.T, 1)
    assert np.isfinite(found[:4]).all() and found[4] == np.inf


async def test_krum_waits_for_as_many_updates_as_it_needs() -> None:
    """Too few at the end of a round is an error that says how many; another update mends it."""
    federation = Federation()
    federation.model(3, {"w": np.zeros(8, np.float32)})
    for at in range(5):
        federation.update(f"s{at}", {"w": np.full(8, at, np.float32)})
    reducer = ReducerSpec.parse("krum:1").build(federation.layout, WORKSPACE)
    await reducer.reset()
    for update, told in federation.updates[:4]:
        await reducer.add(update, told, lambda _: None)
    with pytest.raises(NotEnoughUpdates, match=r"4 updates are too few.*needs 5"):
        await reducer.close(federation.models[3], federation.find_base)
    assert not reducer.dirty
    await reducer.add(*federation.updates[4], lambda _: None)
    assert len(await reducer.close(federation.models[3], federation.find_base)) == 1
    await reducer.aclose()


async def test_bad_updates_are_refused_when_they_come_and_leave_nothing() -> None:
    """NaN, other shapes, damaged values: the others count as if they had never been."""
    federation = Federation()
    federation.model(3, {"w": np.zeros(8, np.float32)})
    for value in (1, 2, 3):
        federation.update(f"s{value}", {"w": np.full(8, value, np.float32)})
    bad = Federation()
    bad.model(3, {"w": np.zeros(8, np.float32)})
    bad.update("nan", {"w": np.array([np.nan] * 8, np.float32)})
    bad.update("inf", {"w": np.array([np.inf] * 8, np.float32)})
    reducer = ReducerSpec.parse("median").build(federation.layout, WORKSPACE)
    await reducer.reset()
    for update, told in bad.updates:
        with pytest.raises(NonFiniteValues, match="'w': the update holds NaN or Inf"):
            await reducer.add(update, told, lambda _: None)
    for update, told in federation.updates:
        await reducer.add(update, told, lambda _: None)
    bad.model(3, {"w": np.zeros(9, np.float32)})
    with pytest.raises(ManifestMismatch):
        await reducer.add(
            bad.update("shape", {"w": np.zeros(9, np.float32)}), bad.updates[-1][1], lambda _: None
        )
    assert not reducer.dirty
    items = await reducer.close(federation.models[3], federation.find_base)
    assert np.frombuffer(items[0].read(0, 8), np.float32).tolist() == [2] * 8
    await reducer.aclose()


async def test_scalars_are_what_most_updates_say() -> None:
    """One site cannot set them; what no update has stays as it was."""
    federation = Federation()
    federation.model(3, {"w": np.zeros(2, np.float32), "step": 1, "note": "begin"})
    for site, step in (("a", 9), ("b", 7), ("c", 7)):
        federation.update(site, {"w": np.ones(2, np.float32), "step": step})
    reducer = ReducerSpec.parse("median").build(federation.layout, WORKSPACE)
    made = await federation.round(reducer)
    await reducer.aclose()
    assert made["step"] == b"\x07"
    assert made["note"] == b"\xa5begin"


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 9, 16, 33, 128])
def test_sorting_networks_sort(count: int) -> None:
    """By the 0-1 principle a network that sorts every 0-1 sequence sorts all; and random columns besides."""
    random = np.random.default_rng(count)
    if count <= 9:
        values = np.array(
            [[(bits >> row) & 1 for bits in range(1 << count)] for row in range(count)], np.float32
        )
    else:
        values = random.integers(0, 9, (count, 4096)).astype(np.float32)
    for wanted in {range(at, at + 1) for at in range(count)} | {range(1, max(2, count - 1)), range(count)}:
        if wanted.stop <= count:
            got = np.sort(np.array(sort_rows(values.copy(), wanted)), axis=0)
            assert np.array_equal(got, np.sort(values, axis=0)[wanted.start : wanted.stop])
    assert not network(count, range(count))
