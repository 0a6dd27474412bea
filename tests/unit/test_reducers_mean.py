"""The weighted mean: against numpy, for every dtype that has one, whole and as changes, late and in part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelling.federated import HeldBase, HeldUpdate, base_id, bfloat16, encoded, items
from tensorbus.aggregator.layout import Layout
from tensorbus.aggregator.reducers.base import Reducer, Workspace
from tensorbus.aggregator.reducers.exact import Exact
from tensorbus.aggregator.reducers.mean import Mean
from tensorbus.aggregator.updates import Contribution, FoldingInterrupted, Update
from tensorbus.codecs.item import Item, ItemSpec
from tensorbus.codecs.registry import quantizer
from tensorbus.codecs.serializers.numpy import NumpySerializer
from tensorbus.errors import InvalidRequest, ManifestMismatch, MissingBase, NonFiniteValues, UnsupportedDtype

Container = Mapping[str, object]
Sent = tuple[HeldUpdate, Contribution]

MEMORY = Workspace(lambda: Path("unused"))
NOW, THEN = base_id("now"), base_id("then")
BOTH = pytest.mark.parametrize("kind", [Mean, Exact])


def tied(container: Container) -> Sequence[Item]:
    """The items of a dict of arrays, of which some are the same array."""
    return NumpySerializer().items(container)


def specs(container: Container | Sequence[Item]) -> list[ItemSpec]:
    """The manifest of a dict of arrays."""
    return [item.spec for item in (items(container) if isinstance(container, Mapping) else container)]


def sent(
    container: Container | Sequence[Item], weight: float = 1.0, codec: str = "none", **about: Any
) -> Sent:
    """An update that counts so much, in slices of a few hundred elements."""
    base = cast("HeldBase | None", about.pop("changes", None))
    site = str(about.pop("site", "a"))
    update = encoded(site, container, codec, base, frame_bytes=4096)
    return update, Contribution(site, site, 1, weight, about.pop("base", NOW), **about)


async def filled(reducer: Reducer, updates: Sequence[Sent]) -> None:
    """All updates added, from nothing."""
    await reducer.reset()
    for update, contribution in updates:
        await reducer.add(update, contribution, lambda _: None)
        assert not reducer.dirty


def read(found: Sequence[Item]) -> dict[str, Any]:
    """Items as arrays, read 100 elements at a time; bfloat16 as its bits, and other than tensors as bytes."""
    arrays: dict[str, Any] = {}
    for item in found:
        spec = item.spec
        if spec.view is not None:
            continue
        data = b"".join(
            bytes(item.read(offset, min(100, spec.count - offset))) for offset in range(0, spec.count, 100)
        )
        kind = np.uint16 if spec.dtype.name == "bfloat16" else np.dtype(spec.dtype.name)
        arrays[spec.name] = np.frombuffer(data, kind).reshape(spec.shape) if spec.kind == "tensor" else data
    return arrays


async def none(base: str) -> Update:
    """There are no models of earlier rounds."""
    raise AssertionError(f"{base} is not needed")


UNREAD = cast(Update, None)
"""As the current model, where that is not to be read."""


async def averaged(
    updates: Sequence[Sent], kind: type[Mean | Exact] = Mean, model: Container | Sequence[Item] | None = None
) -> dict[str, Any]:
    """The mean of these updates; of a model that is read if it is given, and else must not be."""
    reducer = kind(Layout.of(updates[0][0].manifest if model is None else specs(model)), MEMORY)
    try:
        await filled(reducer, updates)
        current = UNREAD if model is None else encoded("model", model, frame_bytes=4096)
        return read(await reducer.close(current, none))
    finally:
        await reducer.aclose()


@BOTH
@pytest.mark.parametrize("name", ["float64", "float32", "float16"])
async def test_floats_are_averaged_by_weight_and_come_back_in_their_dtype(
    name: str, kind: type[Mean | Exact]
) -> None:
    """Every shape: matrices, 0-d, empty, longer than a slice."""
    random = np.random.default_rng(1)
    shapes = {"matrix": (17, 31), "scalar": (), "empty": (0, 4), "long": (5000,)}
    updates = [
        ({key: np.asarray(random.normal(size=shape)).astype(name) for key, shape in shapes.items()}, weight)
        for weight in (1, 812, 33.5)
    ]
    got = await averaged([sent(update, weight) for update, weight in updates], kind)
    total = sum(weight for _, weight in updates)
    for key in shapes:
        exact = sum(np.asarray(update[key], np.float64) * weight for update, weight in updates) / total
        assert got[key].dtype == np.dtype(name)
        assert got[key].shape == shapes[key]
        tolerance = {"float64": 1e-14, "float32": 1e-6, "float16": 1e-3}[name]
        np.testing.assert_allclose(got[key].astype(np.float64), exact, rtol=tolerance, atol=tolerance)


@BOTH
async def test_bfloat16_is_summed_wide_and_rounded_once(kind: type[Mean | Exact]) -> None:
    """Many small contributions are not lost, as they would be in a bfloat16 sum."""
    model = {"w": bfloat16(np.array([1.0, -2.0, 3.0]))}
    expected = (np.array([1.0, -2.0, 3.0], np.float32).view(np.uint32) >> 16).tolist()
    got = await averaged([sent(model)] * 300, kind)
    assert got["w"].tolist() == expected


@BOTH
async def test_integers_are_rounded_to_the_nearest_and_bools_follow_the_majority(
    kind: type[Mean | Exact],
) -> None:
    """A counter that differs by site stays an integer of its dtype."""
    one = {"n": np.array([1, 10, -7]), "u": np.array([0, 255], np.uint8), "b": np.array([True, False])}
    two = {"n": np.array([2, 20, -8]), "u": np.array([1, 255], np.uint8), "b": np.array([False, False])}
    got = await averaged([sent(one, 3), sent(two, 1)], kind)
    assert got["n"].tolist() == [1, 12, -7]
    assert got["u"].tolist() == [0, 255]
    assert got["b"].tolist() == [True, False]
    tie = await averaged([sent({"b": np.array([True])}, 2), sent({"b": np.array([False])}, 2)], kind)
    assert tie["b"].tolist() == [False]


async def test_the_largest_integers_do_not_wrap_around() -> None:
    """2^63 - 1 is no float64: the mean is rounded to one."""
    top = np.iinfo(np.int64).max
    got = await averaged([sent({"n": np.array([top])}, 3), sent({"n": np.array([top])}, 1)])
    assert 0 < int(got["n"][0]) <= top


@BOTH
async def test_the_mean_of_quantised_updates_is_that_of_their_decoded_values(
    kind: type[Mean | Exact],
) -> None:
    """nf4 payloads are added slice by slice, never widened into a tensor first."""
    random = np.random.default_rng(2)
    updates = [({"w": random.normal(size=3000).astype(np.float32)}, weight) for weight in (5, 7)]
    nf4, exact = quantizer("nf4"), np.zeros(3000)
    for update, weight in updates:
        spec = specs(update)[0]
        payload = memoryview(bytearray(nf4.encoded_size(3000, spec.dtype)))
        nf4.encode(update["w"].view(np.uint8).data, spec.dtype, payload)
        decoded = np.empty(3000, np.float32)
        nf4.decode(payload, spec.dtype, decoded.view(np.uint8).data)
        exact += weight * decoded.astype(np.float64) / 12
    got = await averaged([sent(update, weight, "nf4") for update, weight in updates], kind)
    np.testing.assert_allclose(got["w"], exact, rtol=1e-5, atol=1e-6)


async def test_tied_tensors_are_summed_once_whichever_of_their_names_is_sent() -> None:
    """The model sends the embedding and names the head; a site may do it the other way round."""
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    model, three = {"embed": values, "head": values}, values * 3
    assert Mean(Layout.of(specs(tied(model))), MEMORY).nbytes == values.nbytes
    got = await averaged([sent(tied(model)), sent(tied({"head": three, "embed": three}))])
    assert list(got) == ["embed"]
    np.testing.assert_array_equal(got["embed"], values * 2)


async def test_scalars_and_bytes_are_those_of_the_update_that_was_folded_last() -> None:
    """They have no mean, and their length may differ from update to update."""
    tensor = np.zeros(3, np.float32)
    first = {"w": tensor, "step": 9, "note": b"first"}
    second = {"w": tensor, "step": 1000, "note": b"the second"}
    got = await averaged([sent(first, 5), sent(second)])
    assert got["note"] == b"the second"
    assert got["step"] == (await averaged([sent(second)]))["step"]


@BOTH
async def test_a_reset_forgets_everything_but_the_memory(kind: type[Mean | Exact]) -> None:
    """A round that is begun again has the same arrays and none of the values."""
    reducer = kind(Layout.of(specs({"w": np.zeros(3, np.float32)})), MEMORY)
    await filled(reducer, [sent({"w": np.full(3, 1e9, np.float32)}, 100)])
    await filled(reducer, [sent({"w": np.ones(3, np.float32)}, 2)])
    assert read(await reducer.close(UNREAD, none))["w"].tolist() == [1.0, 1.0, 1.0]
    await filled(reducer, [sent({"w": np.full(3, 7, np.float32)}, 2)])
    assert read(await reducer.close(UNREAD, none))["w"].tolist() == [7.0, 7.0, 7.0]
    await reducer.aclose()


@BOTH
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
async def test_an_update_with_nan_or_inf_is_refused_by_name(value: float, kind: type[Mean | Exact]) -> None:
    """One poisoned value would otherwise be in every model from then on; and the reducer says it is dirty."""
    bad = np.zeros(5000, np.float32)
    bad[3333] = value
    update, contribution = sent({"layer.weight": bad})
    reducer = kind(Layout.of(update.manifest), MEMORY)
    await reducer.reset()
    with pytest.raises(NonFiniteValues, match=r"layer\.weight"):
        await reducer.add(update, contribution, lambda _: None)
    assert reducer.dirty
    await filled(reducer, [sent({"layer.weight": np.ones(5000, np.float32)})])
    assert (read(await reducer.close(UNREAD, none))["layer.weight"] == 1).all()
    await reducer.aclose()


@BOTH
async def test_finite_values_whose_sum_overflows_are_refused_as_well(kind: type[Mean | Exact]) -> None:
    """3e38 is a legal fp32 value; 812 times it is not."""
    with pytest.raises(NonFiniteValues, match="range"):
        await averaged([sent({"w": np.full(3, -3e38, np.float32)}, 812)], kind)


@BOTH
def test_a_model_with_a_tensor_that_has_no_mean_is_refused_at_once(kind: type[Mean | Exact]) -> None:
    """Before any site has trained for nothing."""
    with pytest.raises(UnsupportedDtype, match=r"'z' is complex64"):
        kind(Layout.of(specs({"z": np.zeros(3, np.complex64)})), MEMORY)


# --- changes, late ones and scaled ones ------------------------------------------------------------------

RANDOM = np.random.default_rng(3)
MODEL: dict[str, npt.NDArray[Any]] = {
    "w": RANDOM.normal(size=3000).astype(np.float32),
    "h": RANDOM.normal(size=700).astype(np.float16),
    "n": np.array([5, -9, 1 << 40]),
}
OLD: dict[str, npt.NDArray[Any]] = {
    name: (values + RANDOM.normal(size=values.shape)).astype(values.dtype) for name, values in MODEL.items()
}


def moved(model: Mapping[str, npt.NDArray[Any]], step: float) -> dict[str, npt.NDArray[Any]]:
    """A model that was trained a little: its floats."""
    random = np.random.default_rng(int(step * 1000))
    return {
        name: values + (random.normal(size=values.shape) * step).astype(values.dtype)
        if values.dtype.kind == "f"
        else values.copy()
        for name, values in model.items()
    }


@BOTH
@pytest.mark.parametrize("codec", ["none", "delta | none", "same | none", "delta | nf4"])
async def test_a_round_of_changes_in_which_nothing_changed_gives_the_very_same_model(
    codec: str, kind: type[Mean | Exact]
) -> None:
    """Bit for bit, whatever the weights and the signs of zeros."""
    model = {**MODEL, "w": MODEL["w"].copy()}
    model["w"][7] = -0.0
    base = HeldBase(NOW, model)
    weights = (0.1, 812.0, 1 / 3, 7.7)
    got = await averaged([sent(model, weight, codec, changes=base) for weight in weights], kind, model)
    for name in ("w", "h"):
        if codec != "none":
            assert got[name].tobytes() == model[name].tobytes()
        else:
            np.testing.assert_allclose(got[name], model[name], rtol=1e-3 if name == "h" else 1e-6)


@BOTH
async def test_changes_late_ones_and_scaled_ones_come_to_what_the_formula_says(
    kind: type[Mean | Exact],
) -> None:
    """Σ w·[b + s·(x − b_v)] / Σ w, whole or as changes, of the current model or an earlier one."""
    now, old = HeldBase(NOW, MODEL), HeldBase(THEN, OLD)
    late: dict[str, Any] = {"base": THEN, "current": False}
    cases: list[tuple[Mapping[str, npt.NDArray[Any]], float, float, Sent]] = []
    for step, (weight, scale, codec, stale) in enumerate(
        [
            (3.0, 1.0, "none", False),
            (5.5, 1.0, "delta | none", False),
            (2.0, 0.25, "none", False),
            (4.0, 0.5, "delta | none", False),
            (1.5, 1.0, "none", True),
            (2.5, 0.75, "none", True),
            (6.0, 0.125, "delta | none", True),
        ]
    ):
        trained = moved(OLD if stale else MODEL, 0.01 * (step + 1))
        one = sent(
            trained, weight, codec, changes=old if stale else now, scale=scale, **(late if stale else {})
        )
        cases.append((trained, weight, scale, one))
    reducer = kind(Layout.of(specs(MODEL)), MEMORY)
    asked: list[str] = []

    async def find(base: str) -> Update:
        asked.append(base)
        return encoded("old", OLD, frame_bytes=4096)

    await filled(reducer, [one for *_, one in cases])
    got = read(await reducer.close(encoded("now", MODEL, frame_bytes=4096), find))
    await reducer.aclose()
    assert asked == [THEN]
    total = sum(weight for _, weight, _, _ in cases)
    for name, tolerance in (("w", 1e-6), ("h", 2e-3)):
        exact = np.zeros(MODEL[name].shape)
        for trained, weight, scale, (_, contribution) in cases:
            base = (MODEL if contribution.current else OLD)[name].astype(np.float64)
            exact += weight * (MODEL[name] + scale * (trained[name] - base))
        np.testing.assert_allclose(got[name], exact / total, rtol=tolerance, atol=tolerance)


@BOTH
async def test_a_late_whole_update_needs_the_model_it_was_trained_from(kind: type[Mean | Exact]) -> None:
    """If that is gone, the round is taken up again, without it; the reducer says that it is dirty."""

    async def gone(base: str) -> Update:
        raise FoldingInterrupted(f"{base} is gone")

    reducer = kind(Layout.of(specs(MODEL)), MEMORY)
    await filled(reducer, [sent(moved(OLD, 0.1), base=THEN, current=False)])
    with pytest.raises(FoldingInterrupted):
        await reducer.close(encoded("now", MODEL), gone)
    assert reducer.dirty
    await reducer.aclose()


@BOTH
async def test_a_change_from_another_model_is_refused_before_anything_is_added(
    kind: type[Mean | Exact],
) -> None:
    """It would be added to what it was never a change from."""
    reducer = kind(Layout.of(specs(MODEL)), MEMORY)
    await filled(reducer, [sent(MODEL)])
    update, contribution = sent(MODEL, codec="delta | none", changes=HeldBase(THEN, OLD))
    for allowed in (contribution, replace(contribution, base="")):
        with pytest.raises(MissingBase, match=THEN):
            await reducer.add(update, allowed, lambda _: None)
        assert not reducer.dirty
    await reducer.aclose()


# --- partial updates -------------------------------------------------------------------------------------


@BOTH
async def test_partial_updates_are_merged_by_name(kind: type[Mean | Exact]) -> None:
    """The mean of a tensor is of those that have it; one in no update is the model's, bit for bit."""
    model = {
        **MODEL,
        "n": np.array([5, -9, (1 << 60) + 1]),
        "step": 4,
        "odd": np.array([-0.0, 1e-42, 3.0], np.float32),
    }
    updates = [
        sent({"w": MODEL["w"] + np.float32(1)}, 3),
        sent({"w": MODEL["w"] + np.float32(5), "h": MODEL["h"]}, 1),
    ]
    got = await averaged(updates, kind, model)
    np.testing.assert_allclose(got["w"], MODEL["w"] + np.float32(2), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(got["h"], MODEL["h"])
    assert got["n"].tolist() == [5, -9, (1 << 60) + 1]
    assert got["odd"].tobytes() == np.array([-0.0, 1e-42, 3.0], np.float32).tobytes()
    assert got["step"] == bytes(items({"step": 4})[0].read(0, 1))


async def test_only_the_tensors_that_are_needed_of_the_model_are_fetched() -> None:
    """A large model of which a small part is in no update."""
    model = {"large": np.ones(5000, np.float32), "small": np.full(40, 2, np.float32)}
    current = encoded("model", model)
    reducer = Mean(Layout.of(specs(model)), MEMORY)
    await filled(reducer, [sent({"large": model["large"]})])
    assert read(await reducer.close(current, none))["small"].tolist() == [2.0] * 40
    assert (current.whole, current.single) == (0, 1)
    await filled(reducer, [sent({"small": model["small"]})])
    assert read(await reducer.close(current, none))["large"].tolist() == [1.0] * 5000
    assert (current.whole, current.single) == (1, 1)
    await reducer.aclose()


@BOTH
async def test_an_unknown_tensor_is_refused_and_nothing_is_lost(kind: type[Mean | Exact]) -> None:
    """An adapter whose names are not the model's."""
    reducer = kind(Layout.of(specs({"w": np.zeros(3, np.float32)})), MEMORY)
    await filled(reducer, [sent({"w": np.ones(3, np.float32)})])
    update, contribution = sent({"lora": np.ones(3, np.float32)})
    with pytest.raises(ManifestMismatch, match="'lora'"):
        await reducer.add(update, contribution, lambda _: None)
    assert not reducer.dirty
    assert read(await reducer.close(UNREAD, none))["w"].tolist() == [1.0] * 3
    await reducer.aclose()


# --- server optimisers -----------------------------------------------------------------------------------


@BOTH
async def test_values_can_be_overwritten_at_summing_precision(kind: type[Mean | Exact]) -> None:
    """What server optimisers do: the items are read from what ``values`` gives."""
    reducer = kind(Layout.of(specs(MODEL)), MEMORY)
    await filled(reducer, [sent({name: MODEL[name] for name in ("w", "h")}, 3)])
    found = await reducer.close(encoded("now", MODEL), none)
    for name in ("w", "h"):
        values = reducer.values(name)
        assert values is not None and values.dtype == np.float32
        np.testing.assert_allclose(values, MODEL[name], rtol=1e-6)
        values += 1
    assert reducer.values("n") is None
    got = read(found)
    np.testing.assert_allclose(got["w"], MODEL["w"] + 1, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(got["h"], MODEL["h"] + 1, rtol=1e-3)
    assert got["n"].tolist() == MODEL["n"].tolist()
    await reducer.aclose()


@settings(max_examples=30, deadline=None)
@given(
    weights=st.lists(st.floats(min_value=1e-3, max_value=1e9), min_size=1, max_size=6),
    frame_bytes=st.sampled_from((1024, 2000, 4096)),
)
async def test_the_mean_lies_within_the_updates_however_they_are_weighted_and_cut(
    weights: list[float], frame_bytes: int
) -> None:
    """For any weights: min ≤ mean ≤ max of each value, up to fp32 rounding."""
    random = np.random.default_rng(len(weights))
    values = random.normal(size=(len(weights), 600)).astype(np.float32)
    updates = [
        (encoded("a", {"w": row}, frame_bytes=frame_bytes), Contribution("a", "a", 1, weight, NOW))
        for row, weight in zip(values, weights, strict=True)
    ]
    got = (await averaged(updates))["w"]
    slack = 1e-5
    assert (got >= values.min(axis=0) - slack).all()
    assert (got <= values.max(axis=0) + slack).all()


@BOTH
async def test_a_weight_that_cannot_be_counted_is_refused_and_makes_no_model_of_zeros(
    kind: type[Reducer],
) -> None:
    """Products with it would vanish in float32, but its share of the weight would not."""
    model = {"w": np.ones(10, np.float32)}
    reducer = kind(Layout.of(specs(model)), MEMORY)
    await reducer.reset()
    update, contribution = sent(model, 1e-50)
    with pytest.raises(InvalidRequest, match="a weight of 1e-50"):
        await reducer.add(update, contribution, lambda _: None)
    assert not reducer.dirty
    await reducer.aclose()
