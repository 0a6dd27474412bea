"""What reducers are written as, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from modelling.federated import Federation
from tensorbus.aggregator.layout import Layout
from tensorbus.aggregator.reducers import spec as registry
from tensorbus.aggregator.reducers.base import Reducer, Workspace
from tensorbus.aggregator.reducers.exact import Exact
from tensorbus.aggregator.reducers.mean import Mean
from tensorbus.aggregator.reducers.median import MedianReducer
from tensorbus.aggregator.reducers.spec import STEPS, ReducerSpec
from tensorbus.aggregator.reducers.steps import Combiner
from tensorbus.errors import InvalidSpecification

WORKSPACE = Workspace(lambda: Path("unused"))


@pytest.mark.parametrize(
    ("text", "canonical", "least"),
    [
        ("mean", "mean", 1),
        ("clip:1.0 | trimmed:0.1 | fedadam:lr=0.05", None, 1),
        ("clip:2", "clip:norm=2 | mean", 1),
        ("krum:2", "krum:f=2", 7),
        ("multi-krum:f=1,m=3", "multi-krum:f=1,m=3", 5),
        ("multi-krum:1,m=9", "multi-krum:f=1,m=9", 10),
        ("fedavgm:nesterov=true", "mean | fedavgm:lr=1.0,momentum=0.9,nesterov=true,start=1", 1),
        ("  median|fedyogi : 0.1, tau = 1e-2 ", None, 1),
    ],
)
def test_a_text_becomes_steps_and_comes_back(text: str, canonical: str | None, least: int) -> None:
    """Its JSON and its canonical text make an equal specification; the combiner may be left out."""
    spec = ReducerSpec.parse(text)
    assert canonical is None or str(spec) == canonical
    assert (
        ReducerSpec.parse(spec.to_json()) == spec == ReducerSpec.parse(str(spec)) == ReducerSpec.parse(spec)
    )
    assert spec.least == least


def test_the_default_is_the_mean_and_exact_where_a_job_is_deterministic() -> None:
    """None is the mean; every built-in name makes a step that is called so."""
    layout = Layout(())
    assert ReducerSpec.parse(None) == ReducerSpec.parse("mean")
    assert isinstance(ReducerSpec.parse().build(layout, WORKSPACE), Mean)
    exact = Workspace(WORKSPACE.folder, deterministic=True)
    assert isinstance(ReducerSpec.parse().build(layout, exact), Exact)
    for name in STEPS:
        steps = ReducerSpec.parse(
            {"steps": [{"name": name, **({"norm": 1} if name == "clip" else {})}]}
        ).steps
        assert name in [step.name for step in steps]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("", "no reducer '' is installed; there are: clip, mean"),
        ("medain", "no reducer 'medain'"),
        ("median | clip:1", "the order is clip | median"),
        ("fedadam | mean", "the order is mean | fedadam"),
        ("mean | median", "mean and median are both combiners"),
        ("fedadam | fedyogi", "both server optimisers"),
        ("clip:1 | clip:2", "a step stands there twice"),
        ("clip", "does not take the parameters"),
        ("clip:0", "norm is 0; it must be more than 0"),
        ("clip:norm=1,norm=2", "has 'norm' twice"),
        ("median:0.1", "cannot read '0.1'"),
        ("trimmed:0.5", "less than 0.5"),
        ("trimmed:share=", "cannot read 'share='"),
        ("krum:-1", "whole number from 0"),
        ("krum:1.5", "whole number"),
        ("krum:true", "whole number"),
        ("fedadam:lr=0", "more than 0"),
        ("fedadam:lr=nan", "lr is 'nan'"),
        ("fedadam:beta2=1", "less than 1"),
        ("fedavgm:nesterov=1", "true or false"),
        ("fedavgm:start=0", "whole number from 1"),
        ("|".join(["clip:1"] * 9), "1 to 8 steps"),
        ("m" * 5000, "5000 characters"),
        ({"steps": []}, "1 to 8 steps, not 0"),
        ({"steps": "mean"}, "are a list"),
        ({"step": ["mean"]}, "no field 'step'"),
        ({"steps": [3]}, "a name or an object"),
        ({"steps": [{"norm": 3}]}, "has no name"),
        ({"steps": [{"name": "fedadam", "lr": float("nan")}]}, "lr is nan"),
        (3, "a text or an object"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(given: str, why: str) -> None:
    """The message names the step, the parameter, and what it may be."""
    with pytest.raises(InvalidSpecification) as refused:
        ReducerSpec.parse(given)
    assert why in str(refused.value)
    assert len(str(refused.value)) < 700


@dataclass(frozen=True, slots=True)
class Upper(Combiner):
    """Of each number the larger middle one: somebody else's reducer."""

    name: ClassVar[str] = "upper"

    def build(self, layout: Layout, workspace: Workspace) -> Reducer:
        return MedianReducer(layout, workspace)


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plug-ins that an installed package would bring."""
    points = [
        EntryPoint("upper", f"{__name__}:Upper", registry.GROUP),
        EntryPoint("mean", f"{__name__}:Upper", registry.GROUP),
        EntryPoint("no-step", "pathlib:Path", registry.GROUP),
    ]
    load = {"upper": Upper, "mean": Upper, "no-step": Path}
    monkeypatch.setattr(EntryPoint, "load", lambda self: load[self.name])  # pyright: ignore

    def entry_points(group: str, name: str | None = None) -> list[EntryPoint]:
        return [one for one in points if one.group == group and name in (None, one.name)]

    monkeypatch.setattr(registry, "entry_points", entry_points)


@pytest.mark.usefixtures("plugged")
async def test_third_parties_bring_reducers_as_entry_points() -> None:
    """They are named and built like the built-in ones, whose names they cannot take over."""
    federation = Federation()
    federation.model(3, {"w": np.zeros(4, np.float32)})
    for site in "abc":
        federation.update(site, {"w": np.full(4, ord(site), np.float32)})
    reducer = ReducerSpec.parse("upper").build(federation.layout, WORKSPACE)
    made = await federation.round(reducer)
    await reducer.aclose()
    assert np.array_equal(made["w"], np.full(4, ord("b")))
    assert not isinstance(ReducerSpec.parse("mean").combiner, Upper)
    assert registry.installed()[-2:] == ["no-step", "upper"]
    with pytest.raises(InvalidSpecification, match="no class of steps"):
        ReducerSpec.parse("no-step")
