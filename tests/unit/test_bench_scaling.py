"""The virtual links, queues and trees of ``bench/scaling`` against what can be told by hand."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

FOLDER = Path(__file__).parents[2] / "bench" / "scaling"


def load(name: str) -> Any:
    """A module of the package, which is no part of what is installed."""
    if "scaling" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "scaling", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
        )
        assert spec is not None and spec.loader is not None
        package = importlib.util.module_from_spec(spec)
        sys.modules["scaling"] = package
        spec.loader.exec_module(package)
    return importlib.import_module(f"scaling.{name}")


links, costs, tree = load("links"), load("settings"), load("tree")


def test_a_link_is_shared_equally_until_somebody_is_done() -> None:
    """Two transfers of 10 and 30 bytes over 10 bytes/s: 5 each until 2 s, then 10 for the other."""
    ends = links.shared(np.zeros(2), np.array([10.0, 30.0]), np.full(2, 1e9), 10.0)
    assert ends.tolist() == pytest.approx([2.0, 4.0], rel=1e-2)


def test_what_a_narrow_site_cannot_use_the_others_get() -> None:
    """Limits of 1, 10 and 10 bytes/s on a link of 9: 1, 4 and 4."""
    assert links.fair_rates(np.array([1.0, 10.0, 10.0]), 9.0).tolist() == [1.0, 4.0, 4.0]
    assert links.fair_rates(np.array([1.0, 2.0]), 9.0).tolist() == [1.0, 2.0]


def test_who_comes_later_takes_a_share() -> None:
    """One alone for 1 s, then two."""
    ends = links.shared(np.array([0.0, 1.0]), np.array([20.0, 20.0]), np.full(2, 1e9), 10.0)
    assert ends.tolist() == pytest.approx([3.0, 4.0], rel=1e-2)


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(1, 1e4), st.floats(0.5, 50)), min_size=1, max_size=40),
    st.floats(1, 500),
)
def test_a_link_carries_no_more_than_it_can(
    transfers: list[tuple[float, float, float]], capacity: float
) -> None:
    """No transfer is faster than its limit, nor all together than the link; nor is it idle with work left."""
    begins, sizes, limits = (np.array(column) for column in zip(*transfers, strict=True))
    ends = links.shared(begins, sizes, limits, capacity)
    assert (ends >= begins + sizes / limits - 1e-6 * ends).all()
    span = ends.max() - begins.min()
    assert sizes.sum() <= capacity * span * 1.01 + 1e-6
    # Worst case: all wait for the last to begin, then go one after the other.
    slowest = np.minimum(limits, capacity)
    assert ends.max() <= begins.max() + (sizes / slowest).sum() * 1.01 + 1e-6


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=50), st.floats(0, 100))
def test_a_queue_serves_one_at_a_time(arrivals: list[float], seconds: float) -> None:
    """As a loop does."""
    expected: dict[int, float] = {}
    free = 0.0
    for place in sorted(range(len(arrivals)), key=lambda each: (arrivals[each], each)):
        free = max(free, arrivals[place]) + seconds
        expected[place] = free
    done = links.served(np.array(arrivals), seconds)
    assert done.tolist() == pytest.approx([expected[place] for place in range(len(arrivals))])


def settings(**changes: Any) -> Any:
    """A tree of 4 × 5 equal sites."""
    service = costs.Service("none", ratio=0.5, publish=2.0, fold=1.0, fixed=0.5)
    plain = {"fans": (4, 5), "service": service, "model_gb": 1.0, "network": 1e9, "broker": 1e9}
    sites = {"up": 1e8, "down": 1e8, "spread": 0.0, "training": 10.0, "training_spread": 0.0, "quorum": 1.0}
    return costs.Settings(**{**plain, **sites, **changes})


def test_a_round_of_equal_sites_is_the_sum_of_its_parts() -> None:
    """0.5 GB messages: made (2.5), 4 × 0.5 GB down at 1 GB/s (2), to 5 sites at 0.1 GB/s each (5), trained
    (10), up (5), 5 folded one after the other (7.5), made (2.5), 4 up at 1 GB/s (2), folded (6)."""
    outcome = tree.Federation(settings()).round(settings())
    assert outcome.seconds == pytest.approx(2.5 + 2 + 5 + 10 + 5 + 7.5 + 2.5 + 2 + 6, rel=1e-2)
    assert outcome.root_gb == pytest.approx(4.0) and outcome.wide_area_tb == pytest.approx(0.02)
    assert outcome.cpu_hours == pytest.approx((24 * 1.5 + 5 * 2.5) / 3600)


@pytest.mark.parametrize("resource", list(costs.RESOURCES))
def test_a_resource_that_is_no_limit_never_makes_a_round_longer(resource: str) -> None:
    """With sites that differ; and each limit counts somewhere."""
    real = settings(spread=0.7, training_spread=0.3, quorum=0.9)
    federation = tree.Federation(real)
    whole = federation.round(real).seconds
    assert federation.round(real.without(resource)).seconds <= whole * 1.01


def test_the_same_federation_is_drawn_again_and_fewer_are_waited_for_sooner() -> None:
    """A quorum is there sooner than everybody."""
    real = settings(spread=0.7, training_spread=0.3)
    first, second = tree.Federation(real, 3).round(real), tree.Federation(real, 3).round(real)
    assert first == second
    assert tree.Federation(real, 3).round(settings(spread=0.7, training_spread=0.3, quorum=0.5)).seconds < (
        first.seconds
    )
    assert real.sites == 20 and math.isclose(real.wire, 0.5e9)
