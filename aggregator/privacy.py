"""What clipping and noise are worth: the (ε, δ) of differential privacy that a job's rounds add up to.

The arithmetic is that of the package ``dp-accounting`` (Rényi differential privacy of the sampled Gaussian
mechanism: Mironov, Talwar, Zhang 2019), which ``pip install tensorbus[privacy]`` brings.

What is protected is a whole site: two federations that differ by one site's data, all of it, in every round.
The bound holds for updates of equal weight, because only then does no site count for more than 1/updates.
"""

# dp-accounting is not typed.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import math
from dataclasses import dataclass

from tensorbus.errors import InvalidSpecification, MissingPackage

MAX_ROUNDS = 1_000_000


@dataclass(frozen=True, slots=True)
class Guarantee:
    """Differential privacy of one site.

    Attributes:
        local: ε against whoever sees that site's own updates: broker, aggregator, and everybody else.
        central: ε against whoever sees only the models, which hold the mean of ``updates`` of them, and not
            who took part; so it needs an aggregator and a broker that are trusted.
        delta: of both.
    """

    local: float
    central: float
    delta: float


def guarantee(
    multiplier: float, rounds: int, *, updates: int = 1, share: float = 1.0, delta: float = 1e-5
) -> Guarantee:
    """The guarantee of ``clip | gauss:multiplier`` after a number of rounds.

    Noise of ``updates`` sites adds up in their mean: there its multiplier is multiplier · √updates. Sampling
    helps only where nobody sees who was sampled, so only ``central``.

    Args:
        multiplier: that of the stage ``gauss``.
        rounds: in which a site may take part.
        updates: that go into each model, at least.
        share: of the sites that take part in a round, each decided by itself (``select`` of a job).
        delta: probability with which the bound may fail; mostly less than 1 / number of sites.

    Raises:
        InvalidSpecification: a number makes no sense.
        MissingPackage: ``dp-accounting`` is not installed.
    """
    for name, value, most in (("multiplier", multiplier, 1e6), ("share", share, 1.0), ("delta", delta, 0.5)):
        if not 0 < value <= most:
            raise InvalidSpecification(
                f"{name} is {value!r:.40}; it must be more than 0, and {most:g} at most"
            )
    for name, count in (("rounds", rounds), ("updates", updates)):
        if not 1 <= count <= MAX_ROUNDS:
            raise InvalidSpecification(f"{name} is {count!r:.40}; it must be a number from 1 to {MAX_ROUNDS}")
    return Guarantee(
        local=_epsilon(multiplier, rounds, 1.0, delta),
        central=_epsilon(multiplier * math.sqrt(updates), rounds, share, delta),
        delta=delta,
    )


def _epsilon(multiplier: float, rounds: int, share: float, delta: float) -> float:
    try:
        import dp_accounting
        from dp_accounting.rdp import RdpAccountant
    except ImportError:
        raise MissingPackage("dp-accounting is needed: pip install tensorbus[privacy]") from None
    event = dp_accounting.GaussianDpEvent(multiplier)
    if share < 1:
        event = dp_accounting.PoissonSampledDpEvent(share, event)
    accountant = RdpAccountant()
    accountant.compose(dp_accounting.SelfComposedDpEvent(event, rounds))
    return float(accountant.get_epsilon(delta))
