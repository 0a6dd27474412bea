"""The weighted mean: against numpy, for every dtype that has a mean, slice by slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorbus.aggregator.layout import Layout
from tensorbus.aggregator.reducers.mean import WeightedMean
from tensorbus.codecs.chain import QuantizerCodec
from tensorbus.codecs.dtypes import dtype
from tensorbus.codecs.item import Item, ItemSpec
from tensorbus.codecs.registry import quantizer
from tensorbus.codecs.serializers.numpy import NumpySerializer
from tensorbus.errors import NonFiniteValues, UnsupportedDtype
from tensorbus.streaming.decoder import SliceEvent

Container = Mapping[str, object]


def items(container: Container) -> Sequence[Item]:
    """Of a dict of arrays."""
    return NumpySerializer().items(container)


def specs(container: Container) -> list[ItemSpec]:
    """The manifest of a dict of arrays."""
    return [item.spec for item in items(container)]


def fold(
    mean: WeightedMean, update: Container, weight: float, codec: str = "none", elements: int = 128
) -> None:
    """What the worker does with one update, its tensors cut into slices of ``elements``."""
    mean.begin(specs(update), weight)
    for index, item in enumerate(items(update)):
        spec = item.spec
        if spec.view is not None:
            continue
        chosen = quantizer(codec if spec.dtype.kind == "float" and spec.kind == "tensor" else "none")
        for offset in range(0, spec.count, elements):
            count = min(elements, spec.count - offset)
            payload = memoryview(bytearray(chosen.encoded_size(count, spec.dtype)))
            chosen.encode(item.read(offset, count), spec.dtype, payload)
            event = SliceEvent(index, spec, offset, count, payload, QuantizerCodec(chosen, spec.dtype))
            mean.accumulate(event)


def result(mean: WeightedMean) -> dict[str, Any]:
    """The items of the result, read in slices of 100 elements, as arrays (bfloat16 as its bits)."""
    found: dict[str, Any] = {}
    assert not mean.finish()
    for item in mean.result():
        spec = item.spec
        if spec.view is not None:
            continue
        data = b"".join(
            bytes(item.read(offset, min(100, spec.count - offset))) for offset in range(0, spec.count, 100)
        )
        kind = np.uint16 if spec.dtype.name == "bfloat16" else np.dtype(spec.dtype.name)
        found[spec.name] = np.frombuffer(data, kind).reshape(spec.shape) if spec.kind == "tensor" else data
    return found


def averaged(updates: Sequence[tuple[Container, float]], codec: str = "none") -> dict[str, Any]:
    """The mean of these updates, each with its weight."""
    mean = WeightedMean(Layout.of(specs(updates[0][0])))
    for update, weight in updates:
        fold(mean, update, weight, codec)
    return result(mean)


@pytest.mark.parametrize("name", ["float64", "float32", "float16"])
def test_floats_are_averaged_by_weight_and_come_back_in_their_dtype(name: str) -> None:
    """Every shape: matrices, 0-d, empty, longer than a slice."""
    random = np.random.default_rng(1)
    shapes = {"matrix": (17, 31), "scalar": (), "empty": (0, 4), "long": (1000,)}
    updates = [
        ({key: random.normal(size=shape).astype(name) for key, shape in shapes.items()}, weight)
        for weight in (1, 812, 33.5)
    ]
    got = averaged(updates)
    total = sum(weight for _, weight in updates)
    for key in shapes:
        exact = sum(np.asarray(update[key], np.float64) * weight for update, weight in updates) / total
        assert got[key].dtype == np.dtype(name)
        assert got[key].shape == shapes[key]
        tolerance = {"float64": 1e-14, "float32": 1e-6, "float16": 1e-3}[name]
        np.testing.assert_allclose(got[key].astype(np.float64), exact, rtol=tolerance, atol=tolerance)


def test_bfloat16_is_summed_in_fp32_and_rounded_once() -> None:
    """Many small contributions are not lost, as they would be in a bfloat16 sum."""
    bits = (np.array([1.0, -2.0, 3.0], np.float32).view(np.uint32) >> 16).astype(np.uint16)
    spec = ItemSpec("w", dtype("bfloat16"), (3,))
    none = QuantizerCodec(quantizer("none"), spec.dtype)
    mean = WeightedMean(Layout.of([spec]))
    for _ in range(1000):
        mean.begin([spec], 1.0)
        mean.accumulate(SliceEvent(0, spec, 0, 3, bits.view(np.uint8).data, none))
    assert result(mean)["w"].tolist() == bits.tolist()


def test_integers_are_rounded_to_the_nearest_and_bools_follow_the_majority() -> None:
    """A counter that differs by site stays an integer of its dtype; the largest values do not wrap around."""
    top = np.iinfo(np.int64).max
    got = averaged(
        [
            (
                {
                    "n": np.array([1, 10, -7, top]),
                    "u": np.array([0, 255], np.uint8),
                    "b": np.array([True, False]),
                },
                3,
            ),
            (
                {
                    "n": np.array([2, 20, -8, top]),
                    "u": np.array([1, 255], np.uint8),
                    "b": np.array([False, False]),
                },
                1,
            ),
        ]
    )
    assert got["n"][:3].tolist() == [1, 12, -7]
    assert 0 < int(got["n"][3]) <= top
    assert got["u"].tolist() == [0, 255]
    assert got["b"].tolist() == [True, False]
    tie = averaged([({"b": np.array([True])}, 2), ({"b": np.array([False])}, 2)])
    assert tie["b"].tolist() == [False]


def test_the_mean_of_quantised_updates_is_that_of_their_decoded_values() -> None:
    """nf4 payloads are added to the sums as they are, never widened into a tensor first."""
    random = np.random.default_rng(2)
    updates = [({"w": random.normal(size=1000).astype(np.float32)}, weight) for weight in (5, 7)]
    nf4, exact = quantizer("nf4"), np.zeros(1000)
    for update, weight in updates:
        payload = memoryview(bytearray(nf4.encoded_size(1000, dtype("float32"))))
        nf4.encode(update["w"].view(np.uint8).data, dtype("float32"), payload)
        decoded = np.empty(1000, np.float32)
        nf4.decode(payload, dtype("float32"), decoded.view(np.uint8).data)
        exact += weight * decoded.astype(np.float64) / 12
    np.testing.assert_allclose(averaged(updates, "nf4")["w"], exact, rtol=1e-5, atol=1e-6)


def test_tied_tensors_are_summed_once_whichever_of_their_names_is_sent() -> None:
    """The model sends the embedding and names the head; a site may do it the other way round."""
    tied = np.arange(12, dtype=np.float32).reshape(3, 4)
    model = {"embed": tied, "head": tied}
    other = {"head": tied * 3, "embed": None}
    other["embed"] = other["head"]
    mean = WeightedMean(Layout.of(specs(model)))
    assert mean.nbytes == tied.nbytes
    fold(mean, model, 1)
    fold(mean, other, 1)
    got = result(mean)
    assert list(got) == ["embed"]
    np.testing.assert_array_equal(got["embed"], tied * 2)


def test_scalars_and_bytes_are_those_of_the_update_that_was_folded_last() -> None:
    """They have no mean, and their length may differ from update to update."""
    got = averaged([({"step": 9, "note": b"first"}, 5), ({"step": 1000, "note": b"the second"}, 1)])
    expected = averaged([({"step": 1000, "note": b"the second"}, 1)])
    assert got["note"] == b"the second"
    assert got == expected


def test_a_reset_forgets_everything_but_the_memory() -> None:
    """A round that is begun again has the same arrays and none of the values."""
    mean = WeightedMean(Layout.of(specs({"w": np.zeros(3, np.float32)})))
    fold(mean, {"w": np.full(3, 1e9, np.float32)}, 100)
    mean.reset()
    fold(mean, {"w": np.ones(3, np.float32)}, 2)
    assert result(mean)["w"].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_update_with_nan_or_inf_is_refused_by_name(value: float) -> None:
    """One poisoned value would otherwise be in every model from then on."""
    bad = np.zeros(500, np.float32)
    bad[333] = value
    mean = WeightedMean(Layout.of(specs({"layer.weight": bad})))
    with pytest.raises(NonFiniteValues, match=r"layer\.weight"):
        fold(mean, {"layer.weight": bad}, 1)


def test_finite_values_whose_sum_overflows_are_refused_as_well() -> None:
    """3e38 is a legal fp32 value; 812 times it is not."""
    mean = WeightedMean(Layout.of(specs({"w": np.zeros(3, np.float32)})))
    with pytest.raises(NonFiniteValues, match="range of float32"):
        fold(mean, {"w": np.full(3, -3e38, np.float32)}, 812)


def test_a_model_with_a_tensor_that_has_no_mean_is_refused_at_once() -> None:
    """Before any site has trained for nothing."""
    with pytest.raises(UnsupportedDtype, match=r"'z' is complex64"):
        WeightedMean(Layout.of(specs({"z": np.zeros(3, np.complex64)})))


@settings(max_examples=30, deadline=None)
@given(
    weights=st.lists(st.floats(min_value=1e-3, max_value=1e9), min_size=1, max_size=6),
    elements=st.sampled_from((64, 128, 448, 1024)),
)
def test_the_mean_lies_within_the_updates_however_they_are_weighted_and_cut(
    weights: list[float], elements: int
) -> None:
    """For any weights: min ≤ mean ≤ max of each value, up to fp32 rounding."""
    random = np.random.default_rng(len(weights))
    values = random.normal(size=(len(weights), 600)).astype(np.float32)
    mean = WeightedMean(Layout.of(specs({"w": values[0]})))
    for row, weight in zip(values, weights, strict=True):
        fold(mean, {"w": row}, weight, elements=elements)
    got = result(mean)["w"]
    slack = 1e-5
    assert (got >= values.min(axis=0) - slack).all()
    assert (got <= values.max(axis=0) + slack).all()
