"""``fedadagrad``, ``fedadam``, ``fedyogi``: adaptive server optimisers (Reddi et al. 2021, arXiv:2003.00295).

    m ← β₁·m + (1 − β₁)·Δ
    v ← v + Δ²                               fedadagrad
    v ← β₂·v + (1 − β₂)·Δ²                   fedadam
    v ← v − (1 − β₂)·Δ²·sign(v − Δ²)         fedyogi
    x ← x + lr·m / (√v + τ)

as algorithm 2 of the paper has it: without correction of the bias, v beginning as τ², m as 0.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tensorbus.codecs.base import Accumulator

from .optimizers import MAX_START, Rule
from .steps import check_count, check_number


class Adaptive(Rule):
    """What the three have in common.

    Attributes:
        lr: the server's learning rate.
        beta1: of the first moment.
        tau: degree of adaptivity; the smaller, the more all numbers move alike.
    """

    moments: ClassVar[int] = 2

    lr: float
    beta1: float
    tau: float

    def __post_init__(self) -> None:
        check_number(self.name, "lr", self.lr, 0, float("inf"), open_low=True)
        check_number(self.name, "beta1", self.beta1, 0, 1)
        # The square of τ is where float32 begins.
        check_number(self.name, "tau", self.tau, 1e-18, 1e18)
        check_count(self.name, "start", self.start, 1, MAX_START)

    @property
    def initial(self) -> Sequence[float]:
        return 0.0, self.tau**2

    def step(self, change: Accumulator, state: Sequence[Accumulator]) -> None:
        first, second = state
        np.multiply(first, self.beta1, out=first)
        np.add(first, change * (1 - self.beta1), out=first)
        np.multiply(change, change, out=change)
        self.grow(second, change)
        np.sqrt(second, out=change)
        np.add(change, self.tau, out=change)
        np.divide(first, change, out=change)
        np.multiply(change, self.lr, out=change)

    @abstractmethod
    def grow(self, second: Accumulator, square: Accumulator) -> None:
        """The next second moment, in place, by the square of Δ, which may be overwritten."""


@dataclass(frozen=True, slots=True)
class FedAdagrad(Adaptive):
    """See the module."""

    lr: float = 0.01
    beta1: float = 0.0
    tau: float = 1e-3
    start: int = 1

    name: ClassVar[str] = "fedadagrad"

    def grow(self, second: Accumulator, square: Accumulator) -> None:
        np.add(second, square, out=second)


@dataclass(frozen=True, slots=True)
class FedAdam(Adaptive):
    """See the module."""

    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    start: int = 1

    name: ClassVar[str] = "fedadam"

    def __post_init__(self) -> None:
        Adaptive.__post_init__(self)
        check_number(self.name, "beta2", self.beta2, 0, 1)

    def grow(self, second: Accumulator, square: Accumulator) -> None:
        np.multiply(second, self.beta2, out=second)
        np.multiply(square, 1 - self.beta2, out=square)
        np.add(second, square, out=second)


@dataclass(frozen=True, slots=True)
class FedYogi(FedAdam):
    """As FedAdam, but the second moment moves by a step that does not depend on how far it is off."""

    name: ClassVar[str] = "fedyogi"

    def grow(self, second: Accumulator, square: Accumulator) -> None:
        sign = np.sign(second - square)
        np.multiply(square, 1 - self.beta2, out=square)
        np.multiply(square, sign, out=square)
        np.subtract(second, square, out=second)
