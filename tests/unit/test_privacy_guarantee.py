"""What noise is worth, against what is known of the Gaussian mechanism."""

from __future__ import annotations

import json
import math

import pytest
from click.testing import CliRunner

from tensorbus.aggregator.privacy import guarantee
from tensorbus.cli.privacy import command
from tensorbus.errors import InvalidSpecification


def exact_delta(epsilon: float, multiplier: float) -> float:
    """Of one Gaussian mechanism of sensitivity 1: Balle, Wang 2018, theorem 8."""

    def phi(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    return phi(0.5 / multiplier - epsilon * multiplier) - math.exp(epsilon) * phi(
        -0.5 / multiplier - epsilon * multiplier
    )


@pytest.mark.parametrize("multiplier", [0.7, 1.0, 4.0])
@pytest.mark.parametrize("rounds", [1, 16])
def test_the_bound_holds_and_is_not_far_from_the_exact_one(multiplier: float, rounds: int) -> None:
    """Of the Gaussian mechanism without sampling the exact curve is known."""
    # Rounds of Gaussian noise are one mechanism whose multiplier is smaller by their root.
    epsilon = guarantee(multiplier, rounds).local
    alone = multiplier / math.sqrt(rounds)
    assert exact_delta(epsilon, alone) <= 1e-5
    assert exact_delta(epsilon * 0.7, alone) > 1e-5


def test_more_updates_and_sampling_help_the_models_only() -> None:
    """Who sees the updates of a site sees its own noise and nothing else."""
    alone = guarantee(1.0, 100)
    many = guarantee(1.0, 100, updates=64)
    sampled = guarantee(1.0, 100, updates=64, share=0.1)
    assert alone.local == many.local == sampled.local == alone.central
    assert sampled.central < many.central < alone.central
    assert many.central == pytest.approx(guarantee(8.0, 100).local)


@pytest.mark.parametrize(
    "wrong",
    [
        {"multiplier": 0.0},
        {"multiplier": math.nan},
        {"share": 1.5},
        {"delta": 0.0},
        {"rounds": 0},
        {"updates": 0},
    ],
)
def test_numbers_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    """By name."""
    with pytest.raises(InvalidSpecification, match=next(iter(wrong))):
        guarantee(**{"multiplier": 1.0, "rounds": 1, **wrong})  # pyright: ignore[reportArgumentType]


def test_the_command_says_it() -> None:
    """As JSON and as text."""
    options = ["--multiplier", "1", "--rounds", "100", "--updates", "50", "--share", "0.1"]
    told = json.loads(CliRunner().invoke(command, [*options, "--json"]).output)
    found = guarantee(1.0, 100, updates=50, share=0.1)
    assert told == {"local_epsilon": found.local, "central_epsilon": found.central, "delta": 1e-5}
    assert f"{found.central:.4g}" in CliRunner().invoke(command, options).output
