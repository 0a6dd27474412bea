"""What every training has in common: AdamW, its schedule, and the tensors that travel."""

# torch is typed in part only.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod

import torch

from trainings.settings import Recipe


class Trainer(ABC):
    """Trains a model on one site's text. The optimizer's state stays at the site, from round to round.

    Attributes:
        weights: the trainable tensors by name; they share memory with the model.
    """

    def __init__(self, model: torch.nn.Module, recipe: Recipe, total_steps: int) -> None:
        self.recipe = recipe
        self._trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.weights = {name: value.detach() for name, value in self._trained.items()}
        self._optimizer = torch.optim.AdamW(
            self._trained.values(), lr=recipe.rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )
        self._total = total_steps
        self._done = 0

    def train(self, steps: int) -> list[float]:
        """Some steps; the loss of each."""
        losses: list[float] = []
        for _ in range(steps):
            for group in self._optimizer.param_groups:
                group["lr"] = self.recipe.rate * self._schedule()
            loss = self._next_loss()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._trained.values(), 1.0)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            self._done += 1
            losses.append(loss.item())
        return losses

    def _schedule(self) -> float:
        rising = (self._done + 1) / self.recipe.warmup
        falling = 1 - 0.9 * self._done / self._total
        return min(1.0, rising) * falling

    @abstractmethod
    def _next_loss(self) -> torch.Tensor:
        """Mean loss of the next batch."""

    @abstractmethod
    def evaluate(self, part: int, parts: int, *, final: bool) -> tuple[float, int]:
        """Summed loss over this part of the held-out text, and of how many tokens; more text if ``final``."""


def digest(weights: dict[str, torch.Tensor]) -> str:
    """SHA-256 over all values: equal exactly when the weights are, bit for bit."""
    found = hashlib.sha256()
    for value in weights.values():
        found.update(value.contiguous().numpy().data.cast("B"))
    return found.hexdigest()
