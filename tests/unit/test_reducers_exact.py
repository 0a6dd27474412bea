"""The deterministic mean: the same bits in any order and any grouping, those of independent arithmetic."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelling.federated import HeldBase, HeldUpdate, base_id, encoded, items
from tensorbus.aggregator.layout import Layout
from tensorbus.aggregator.reducers import partials
from tensorbus.aggregator.reducers.base import Workspace
from tensorbus.aggregator.reducers.exact import Exact
from tensorbus.aggregator.reducers.mean import Mean
from tensorbus.aggregator.updates import Contribution, Update
from tensorbus.codecs import exact
from tensorbus.codecs.dtypes import DTYPES
from tensorbus.codecs.item import Item
from tensorbus.codecs.kernels.loader import forced, usable
from tensorbus.codecs.memory import MemoryItem
from tensorbus.errors import InvalidRequest, LimitExceeded, ManifestMismatch, NonFiniteValues

MEMORY = Workspace(lambda: Path("unused"), deterministic=True)
NOW, THEN = base_id("now"), base_id("then")
NAMES = ("float32", "float64", "float16", "int32", "bool")
Container = Mapping[str, Any]
Sent = tuple[HeldUpdate, Contribution]

weights = st.floats(2.0**-20, 1e12) | st.integers(1, 10**6).map(float)


def model_of(seed: int, scale: float = 1.0, count: int = 40) -> dict[str, Any]:
    """A tensor of each dtype, values of many magnitudes, and a scalar."""
    random = np.random.default_rng(seed)
    values = random.normal(size=count) * 10.0 ** random.integers(-12, 4, count) * scale
    return {
        "float32": values.astype(np.float32),
        "float64": values,
        "float16": (values * 1e-3).astype(np.float16),
        "int32": random.integers(-1000, 1000, count).astype(np.int32),
        "bool": random.integers(0, 2, count).astype(np.bool_),
        "note": f"of {seed}",
    }


async def earlier(base: str) -> Update:
    """The model that late updates were trained from."""
    assert base == THEN
    return encoded("old", model_of(99))


async def summed(updates: Sequence[Sent], close: bool = True) -> tuple[dict[str, bytes], list[Item]]:
    """The bytes of the mean of these updates; or the items of the sums, copied."""
    reducer = Exact(Layout.of(encoded("now", model_of(7)).manifest), MEMORY)
    await reducer.reset()
    for update, contribution in updates:
        await reducer.add(update, contribution, lambda _: None)
    try:
        if not close:
            return {}, copied(reducer.partial())
        found = await reducer.close(encoded("now", model_of(7)), earlier)
        return {item.spec.name: bytes(item.read(0, item.spec.count)) for item in found}, []
    finally:
        await reducer.aclose()


def copied(found: Sequence[Item]) -> list[Item]:
    """Items that outlive what they were made of."""
    return [MemoryItem(item.spec, memoryview(bytes(item.read(0, item.spec.count)))) for item in found]


async def region(updates: Sequence[Sent]) -> Sent:
    """The message of a region that has summed these updates, in frames that cut sums in two."""
    _, sums = await summed(updates, close=False)
    message = encoded("region", sums, frame_bytes=1000)
    weight = math.fsum(told.weight for _, told in updates)
    return message, Contribution("region", "region", 1, weight, NOW, partial=True)


@st.composite
def federations(draw: st.DrawFn) -> list[Sent]:
    """Updates of any kind: whole, changes, late, clipped, in part."""
    now, old = HeldBase(NOW, model_of(7)), HeldBase(THEN, model_of(99))
    updates: list[Sent] = []
    for number in range(draw(st.integers(1, 6))):
        late, change = draw(st.booleans()), draw(st.booleans())
        base = old if late else now
        container = model_of(draw(st.integers(0, 50)))
        if draw(st.booleans()):
            kept = draw(st.sets(st.sampled_from(NAMES), min_size=1))
            container = {name: value for name, value in container.items() if name in kept}
        update = encoded(f"u{number}", container, "delta | none" if change else "none", base)
        scale = draw(st.sampled_from((1.0, 1.0, 0.5, 1 / 3)))
        site = f"site-{number}"
        updates.append((update, Contribution(site, site, 1, draw(weights), base.id, not late, scale)))
    return updates


@settings(max_examples=40, deadline=None)
@given(federations(), st.randoms(use_true_random=False))
async def test_any_order_and_any_tree_give_the_same_bits(updates: list[Sent], random: Any) -> None:
    """Regions sum before they send, regions of regions too; what is added to them comes in any order."""
    expected, _ = await summed(updates)
    nodes = list(updates)
    random.shuffle(nodes)
    assert (await summed(nodes))[0] == expected
    while len(nodes) > 1:
        size = random.randint(1, len(nodes))
        chosen, nodes = nodes[:size], nodes[size:]
        nodes.append(await region(chosen))
        random.shuffle(nodes)
        if random.random() < 0.3:
            break
    assert (await summed(nodes))[0] == expected


def nearest(value: Fraction, kind: str) -> bytes:
    """A mean in a dtype, as docs/federation.md tells: float64, and then by way of float32."""
    double = np.float64(float(value))
    if kind == "int32":
        return np.int32(int(np.rint(double))).tobytes()
    if kind == "bool":
        return np.bool_(double > 0.5).tobytes()
    if kind == "float16":
        return np.float16(np.float32(double)).tobytes()
    return np.dtype(kind).type(double).tobytes()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), weights), min_size=1, max_size=5))
async def test_the_mean_is_that_of_fractions(parts: list[tuple[int, float]]) -> None:
    """Whole updates: S / W, each product rounded to float64 and the grid of 2^-64, and one division."""
    updates = [
        (encoded("u", model_of(seed)), Contribution("u", f"s{at}", 1, weight, NOW))
        for at, (seed, weight) in enumerate(parts)
    ]
    got, _ = await summed(updates)
    total = Fraction(float(sum(Fraction(weight) for _, weight in parts)))
    for name in NAMES:
        expected = b""
        for at in range(40):
            steps = sum(
                round(Fraction(float(model_of(seed)[name][at]) * weight) * 2**64) for seed, weight in parts
            )
            expected += nearest(Fraction(steps, 2**64) / total, name)
        assert got[name] == expected, name
    assert got["note"] == bytes(items({"note": f"of {parts[0][0]}"})[0].read(0, 99))  # the least site's


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), weights), min_size=1, max_size=4))
async def test_changes_are_added_to_the_base_as_documented(parts: list[tuple[int, float]]) -> None:
    """(S / W) + share·b in float64, then the dtype; the share is exactly 1 here."""
    now = HeldBase(NOW, model_of(7))
    updates = [
        (encoded("u", {"float32": model_of(seed)["float32"]}, "delta | none", now), weight)
        for seed, weight in parts
    ]
    got, _ = await summed([(one, Contribution("u", "s", 1, weight, NOW)) for one, weight in updates])
    base = model_of(7)["float32"]
    total = Fraction(float(sum(Fraction(weight) for _, weight in parts)))
    expected = np.empty(40, np.float32)
    for at in range(40):
        steps = 0
        for seed, weight in parts:
            change = float(model_of(seed)["float32"][at] - base[at])  # rounded to float32, as it is sent
            steps += round(Fraction(change * weight) * 2**64)
        expected[at] = np.float64(float(Fraction(steps, 2**64) / total)) + np.float64(base[at])
    assert got["float32"] == expected.tobytes()


# --- the kernels -----------------------------------------------------------------------------------------

KERNELS = pytest.mark.parametrize("kernels", usable())


@KERNELS
@settings(max_examples=60, deadline=None)
@given(
    data=st.lists(st.tuples(st.floats(-(2.0**40), 2.0**40), st.floats(2.0**-24, 2.0**20)), min_size=1),
    total=st.floats(2.0**-24, 2.0**60),
)
def test_all_kernels_add_and_divide_like_fractions(
    kernels: tuple[str, str | None], data: list[tuple[float, float]], total: float
) -> None:
    """Down to the last bit, for every instruction set and without the library."""
    steps = sum(round(Fraction(value * weight) * 2**64) for value, weight in data)
    with forced(*kernels):
        sums, out = np.zeros(2, np.int64), np.empty(1)
        for value, weight in data:
            exact.add_products(np.array([value]).view(np.uint8), DTYPES["float64"], sums, weight)
        exact.divide(sums, total, out)
    assert (int(sums[1]) << 64) + (int(sums[0]) & (2**64 - 1)) == steps
    assert out[0] == float(Fraction(steps, 2**64) / Fraction(total))


@KERNELS
@settings(max_examples=100, deadline=None)
@given(
    quotient=st.integers(2**52, 2**53 - 1),
    total=st.integers(1, 2**53 - 1) | st.sampled_from((1, 2, 3, 1 << 52)),
    shift=st.integers(0, 18),
    off=st.sampled_from((0, 1, -1, 2, -2, 1000, -1000)),
    sign=st.sampled_from((1, -1)),
)
def test_quotients_close_to_the_middle_of_two_floats_are_rounded_right(
    kernels: tuple[str, str | None], quotient: int, total: int, shift: int, off: int, sign: int
) -> None:
    """Where the short way is in doubt: exactly half-way, ties to even, and a hair beside it."""
    steps = sign * (((2 * quotient + 1) * total << shift) + off)
    words = (steps & (2**64 - 1)).to_bytes(8, "little") + (steps >> 64).to_bytes(8, "little", signed=True)
    sums, out = np.frombuffer(words, np.int64), np.empty(1)
    with forced(*kernels):
        exact.divide(sums, float(total), out)
    assert out[0] == float(Fraction(steps, 2**64) / total)


@KERNELS
def test_what_leaves_the_range_is_refused(kernels: tuple[str, str | None]) -> None:
    """Products from 2^62 on, sums from 2^63 on, NaN and Inf; what is just within is exact."""
    float64, float32 = DTYPES["float64"], DTYPES["float32"]
    with forced(*kernels):
        sums = np.zeros(2, np.int64)
        largest = np.array([np.nextafter(2.0**62, 0)])
        exact.add_products(largest.view(np.uint8), float64, sums, 1.0)
        exact.add_products(largest.view(np.uint8), float64, sums, 1.0)
        assert int(sums[1]) == 2 * int(largest[0])
        with pytest.raises(NonFiniteValues, match="range"):
            exact.add_products(largest.view(np.uint8), float64, sums, 1.0)
        with pytest.raises(NonFiniteValues, match="range"):
            exact.add_sums(np.array([0, 2**62], np.int64).view(np.uint8), np.array([0, 2**62], np.int64))
        with pytest.raises(NonFiniteValues, match="range"):
            exact.add_products(np.array([2.0**60]).view(np.uint8), float64, np.zeros(2, np.int64), 4.0)
        for bad in (np.nan, np.inf):
            with pytest.raises(NonFiniteValues, match="NaN or Inf"):
                exact.add_products(
                    np.array([0, bad], np.float32).view(np.uint8), float32, np.zeros(4, np.int64), 1
                )


# --- what a region may send ------------------------------------------------------------------------------


async def partial_items() -> dict[str, Item]:
    """The items of the sums of two updates, by name."""
    base = HeldBase(NOW, model_of(7))
    updates = [
        (encoded("u", model_of(1), "delta | none", base), Contribution("u", "u", 1, 3.0, NOW)),
        (encoded("v", {"float32": model_of(2)["float32"]}), Contribution("v", "v", 1, 0.1, NOW)),
    ]
    _, found = await summed(updates, close=False)
    return {item.spec.name: item for item in found}


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Item]], object]:
    """An edit of what a partial message says of itself."""

    def edit(found: dict[str, Item]) -> None:
        item = found[partials.NAME]
        value = json.loads(bytes(item.read(0, item.spec.count)))
        change(value)
        found[partials.NAME] = items({partials.NAME: json.dumps(value).encode()})[0]

    return edit


def without(name: str) -> Callable[[dict[str, Item]], object]:
    """No item of this name."""
    return lambda found: found.pop(name)


def replaced(name: str, value: object) -> Callable[[dict[str, Item]], object]:
    """Another item of this name."""
    return lambda found: found.update({name: items({name: value})[0]})


@pytest.mark.parametrize(
    ("edit", "error", "why"),
    [
        (without(partials.NAME), ManifestMismatch, "byte string 'tensorbus:partial'"),
        (replaced(partials.NAME, b"{"), InvalidRequest, "not JSON"),
        (replaced(partials.NAME, b"[" * 100_000), InvalidRequest, "not JSON"),
        (replaced(partials.NAME, b"x" * (partials.MAX_BYTES + 1)), LimitExceeded, "at most"),
        (replaced("float32", np.zeros((40, 2))), ManifestMismatch, "float64"),
        (replaced("float32", np.zeros((39, 2), np.int64)), ManifestMismatch, r"int64 \[39, 2\]"),
        (replaced("lora", np.zeros((40, 2), np.int64)), ManifestMismatch, "'lora'"),
        (replaced("note", np.zeros((40, 2), np.int64)), ManifestMismatch, "'note'"),
        (without("bool"), InvalidRequest, "other tensors"),
        (changed(lambda value: value.update(version=2)), InvalidRequest, "version 1"),
        (changed(lambda value: value.pop("bases")), InvalidRequest, "version 1"),
        (changed(lambda value: value["totals"].update(float32="-1")), InvalidRequest, "cannot be"),
        (changed(lambda value: value["totals"].update(float32="1/0")), InvalidRequest, "no weight"),
        (changed(lambda value: value["totals"].update(float32="1/3")), InvalidRequest, "no weight"),
        (changed(lambda value: value["totals"].update(float32="1" * 500)), InvalidRequest, "no weight"),
        (changed(lambda value: value["totals"].update(float32=3)), InvalidRequest, "no weight"),
        (changed(lambda value: value["totals"].update(float32="4")), InvalidRequest, "more than the 3.1 of"),
        (changed(lambda value: value["bases"].update(x={})), InvalidRequest, "no id of a base"),
        (
            changed(lambda value: value["bases"][""].update(float32=[[0, 41, "1"]])),
            InvalidRequest,
            "no piece",
        ),
        (changed(lambda value: value["bases"][""].update(lora=[])), InvalidRequest, "'lora'"),
        (
            changed(lambda value: value["bases"][""].update(float32=[[0, 9, "1"], [8, 9, "1"]])),
            InvalidRequest,
            "out of order",
        ),
        (changed(lambda value: value["extras"].update(note=["s"])), InvalidRequest, "of whom"),
        (changed(lambda value: value["extras"].clear()), InvalidRequest, "other scalars"),
    ],
)
async def test_sums_that_cannot_be_are_refused(
    edit: Callable[[dict[str, Item]], object], error: type[Exception], why: str
) -> None:
    """With what is wrong; and after a reset, if it says so, the right ones count as ever."""
    found = await partial_items()
    whole = encoded("region", list(found.values()))
    edit(found)
    told = Contribution("region", "region", 1, 3.1, NOW, partial=True)
    reducer = Exact(Layout.of(encoded("now", model_of(7)).manifest), MEMORY)
    await reducer.reset()
    with pytest.raises(error, match=why):
        await reducer.add(encoded("bad", list(found.values())), told, lambda _: None)
    if reducer.dirty:
        await reducer.reset()
    await reducer.add(whole, told, lambda _: None)
    got = await reducer.close(encoded("now", model_of(7)), earlier)
    expected = await summed([(whole, told)])
    assert {item.spec.name: bytes(item.read(0, item.spec.count)) for item in got} == expected[0]
    await reducer.aclose()


async def test_a_weight_that_the_grid_cannot_hold_is_refused() -> None:
    """It would count as nothing."""
    update = encoded("u", model_of(1))
    with pytest.raises(InvalidRequest, match="2\\^-24"):
        await summed([(update, Contribution("u", "u", 1, 1e-9, NOW))])


async def test_exact_sums_are_for_deterministic_jobs_only() -> None:
    """The plain mean has no room for them, and takes them for an update of another model."""
    found = await partial_items()
    reducer = Mean(Layout.of(encoded("now", model_of(7)).manifest), MEMORY)
    await reducer.reset()
    told = Contribution("region", "region", 1, 1.0, NOW, partial=True)
    with pytest.raises(ManifestMismatch):
        await reducer.add(encoded("region", list(found.values())), told, lambda _: None)
    assert not reducer.dirty
    await reducer.aclose()


def test_the_sums_are_on_the_wire_as_documented() -> None:
    """Little-endian, the lower word first, steps of 2^-64: other programs read them."""
    sums = np.zeros(6, np.int64)
    values = np.array([1.0, -(2.0**-64), 2.5])
    exact.add_products(values.view(np.uint8), DTYPES["float64"], sums, 1.0)
    assert sums.reshape(3, 2).tolist() == [[0, 1], [-1, -1], [cast(int, np.int64(-(2**63))), 2]]
