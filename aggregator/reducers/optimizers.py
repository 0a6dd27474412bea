"""Server optimisers: the contract of their rules, and ``fedavgm`` (Hsu et al. 2019, arXiv:1909.06335)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tensorbus.codecs.base import Accumulator

from .base import Reducer
from .optimizing import Optimizing
from .steps import ServerOptimizer, check_count, check_flag, check_number

MAX_START = 1_000_000


class Rule(ServerOptimizer):
    """A step for each number of the model on its own, by what is remembered of it.

    Attributes:
        moments: how many numbers are remembered for each of the model.
        start: the round that begins with nothing remembered.
    """

    moments: ClassVar[int]
    primary: ClassVar[str | None] = "lr"

    start: int

    @property
    @abstractmethod
    def initial(self) -> Sequence[float]:
        """What is remembered in the beginning, for each moment."""

    @abstractmethod
    def step(self, change: Accumulator, state: Sequence[Accumulator]) -> None:
        """Replace ``change``, the pseudo-gradient, by what is to be added, and ``state`` by the next.

        All of them are flat, of the same size (at most ``PIECE``) and dtype.
        """

    def wrap(self, combiner: Reducer) -> Reducer:
        return Optimizing(combiner, self)


@dataclass(frozen=True, slots=True)
class FedAvgM(Rule):
    """Momentum: m ← momentum·m + Δ; the model moves by lr·m, or by lr·(Δ + momentum·m) with ``nesterov``.

    Attributes:
        lr: the server's learning rate.
        momentum: at least 0 and less than 1.
        nesterov: look ahead.
        start: the round that begins with nothing remembered.
    """

    lr: float = 1.0
    momentum: float = 0.9
    nesterov: bool = False
    start: int = 1

    name: ClassVar[str] = "fedavgm"
    moments: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_number(self.name, "lr", self.lr, 0, float("inf"), open_low=True)
        check_number(self.name, "momentum", self.momentum, 0, 1)
        check_flag(self.name, "nesterov", self.nesterov)
        check_count(self.name, "start", self.start, 1, MAX_START)

    @property
    def initial(self) -> Sequence[float]:
        return (0.0,)

    def step(self, change: Accumulator, state: Sequence[Accumulator]) -> None:
        (moment,) = state
        np.multiply(moment, self.momentum, out=moment)
        np.add(moment, change, out=moment)
        if self.nesterov:
            np.add(change, moment * self.momentum, out=change)
            np.multiply(change, self.lr, out=change)
        else:
            np.multiply(moment, self.lr, out=change)
