"""Norm clipping before every combiner, against numpy on whole models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelling.federated import Array, Federation
from tensorbus.aggregator.reducers.base import Workspace
from tensorbus.aggregator.reducers.spec import ReducerSpec
from tensorbus.aggregator.updates import FoldingInterrupted
from tensorbus.errors import NonFiniteValues

Doubles = npt.NDArray[np.float64]


async def reduced(text: str, federation: Federation, deterministic: bool = False) -> dict[str, Array]:
    """The next model."""
    workspace = Workspace(lambda: Path("unused"), deterministic=deterministic)
    reducer = ReducerSpec.parse(text).build(federation.layout, workspace)
    try:
        made = await federation.round(reducer)
    finally:
        await reducer.aclose()
    return {name: value for name, value in made.items() if isinstance(value, np.ndarray)}


def clipped(change: dict[str, Doubles], norm: float) -> dict[str, Doubles]:
    """The change, of which the float tensors have together this norm at most."""
    length = np.sqrt(sum(float((value**2).sum()) for name, value in change.items() if name != "n"))
    return {name: value * min(1.0, norm / length) if length else value for name, value in change.items()}


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(1, 6),
    norm=st.sampled_from([0.01, 20.0, 1e9]),
    codec=st.sampled_from(["none", "delta | none", "same | none"]),
    text=st.sampled_from(["mean", "median", "trimmed:0.2", "exact"]),
    late=st.booleans(),
)
async def test_no_update_changes_the_model_by_more_than_the_norm(
    seed: int, count: int, norm: float, codec: str, text: str, late: bool
) -> None:
    """b + s·(x − b_v) of each, combined; from the round's model or an earlier one, whole or as changes."""
    random = np.random.default_rng(seed)

    def tensors(spread: float) -> dict[str, Array]:
        return {
            "f": (spread * random.normal(size=(23, 19))).astype(np.float32),
            "d": spread * random.normal(size=77),
            "n": random.integers(0, 1000, 5),
        }

    federation = Federation()
    models = {2: tensors(1), 3: tensors(1)}
    for number, model in models.items():
        federation.model(number, model)
    rows: list[dict[str, Doubles]] = []
    for at in range(count):
        number = 2 if late and at % 2 else 3
        moved = tensors(10.0**at)
        federation.update(f"s{at}", moved, codec, number=number, weight=1000.0)
        difference = {name: np.asarray(moved[name], np.float64) - models[number][name] for name in "fdn"}
        change = clipped(difference, norm)
        rows.append({name: models[3][name] + change[name] for name in "fdn"})
    combiner = "mean" if text == "exact" else text
    made = await reduced(f"clip:{norm} | {combiner}", federation, deterministic=text == "exact")
    cut = int(0.2 * count + 1e-9)
    for name in "fd":
        stack = np.sort(np.stack([row[name] for row in rows]), axis=0)
        wanted = {
            "median": np.median(stack, axis=0),
            "trimmed:0.2": stack[cut : count - cut].mean(axis=0),
        }.get(text, stack.mean(axis=0))
        tolerance = 1e-5 if name == "f" else 1e-6  # factors come from changes that were rounded to float32
        assert np.allclose(made[name], wanted, rtol=tolerance, atol=tolerance * np.abs(stack).max())


async def test_what_is_small_enough_stays_as_it_is_bit_for_bit() -> None:
    """A norm that nobody reaches makes no difference at all."""
    random = np.random.default_rng(5)
    federation = Federation()
    federation.model(3, {"w": random.normal(size=5000).astype(np.float32)})
    for at in range(4):
        federation.update(f"s{at}", {"w": random.normal(size=5000).astype(np.float32)}, "nf4", weight=at + 1)
    for combiner in ("mean", "median"):
        plain = await reduced(combiner, federation)
        assert np.array_equal((await reduced(f"clip:1e9 | {combiner}", federation))["w"], plain["w"])


async def test_an_update_without_a_change_and_one_without_an_end() -> None:
    """A norm of zero divides nothing; a change that cannot be measured is refused, and leaves nothing."""
    federation = Federation()
    model = {"w": np.ones(300), "v": np.ones(3)}
    federation.model(3, model)
    federation.update("still", model)
    reducer = ReducerSpec.parse("clip:1").build(federation.layout, Workspace(lambda: Path("unused")))
    made = await federation.round(reducer)
    assert np.array_equal(made["w"], model["w"])
    for value, why in ((np.nan, "NaN"), (1e200, "too large to be measured")):
        federation.update("endless", {"w": np.full(300, value), "v": np.ones(3)})
        with pytest.raises(NonFiniteValues, match=why):
            await reducer.add(*federation.updates[-1], lambda _: None)
        assert not reducer.dirty
    await reducer.aclose()


async def test_the_model_that_a_whole_update_was_trained_from_has_to_be_there() -> None:
    """A change is measured without it; without either the round is interrupted, not the update refused."""
    federation = Federation()
    federation.model(3, {"w": np.zeros(300, np.float32)})
    federation.update("whole", {"w": np.ones(300, np.float32)})
    federation.update("change", {"w": np.ones(300, np.float32)}, "delta | none")
    federation.models[3].gone = True
    reducer = ReducerSpec.parse("clip:1").build(federation.layout, Workspace(lambda: Path("unused")))
    await reducer.begin(3, federation.find_base)
    await reducer.reset()
    await reducer.add(*federation.updates[1], lambda _: None)
    with pytest.raises(FoldingInterrupted):
        await reducer.add(*federation.updates[0], lambda _: None)
    assert not reducer.dirty
    await reducer.aclose()
