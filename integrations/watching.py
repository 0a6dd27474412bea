"""Watcher: how many examples a model was trained on, and with what loss, whoever trains it.

Strategy. A hook on the model sees every batch that goes through it and every output. It looks while the model
is in training mode, so evaluation does not count; the last, smaller batch of an epoch counts as what it is.
"""

# torch is typed in part only.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch

NORMALISER = "num_items_in_batch"
"""What the Trainer tells models that divide the loss by the tokens of a whole step, and not of a batch."""


class Watcher:
    """Watches one model from now on, until it is closed.

    Attributes:
        examples: seen since the last `reset`.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.examples = 0
        self._batches = 0
        self._parts = False
        self._losses: torch.Tensor | None = None
        self._hook = model.register_forward_hook(self._saw, with_kwargs=True)

    def reset(self) -> None:
        """Count anew."""
        self.examples = self._batches = 0
        self._losses = None

    def loss(self, steps: int) -> float | None:
        """Mean of the losses since the last `reset`, in which there were ``steps`` steps of the optimizer.

        None if the model gives no loss: its Trainer computes it elsewhere.
        """
        if self._losses is None:
            return None
        return float(self._losses) / max(1, steps if self._parts else self._batches)

    def close(self) -> None:
        """Watch no more; may be called twice."""
        self._hook.remove()

    def _saw(
        self, model: torch.nn.Module, given: tuple[object, ...], named: dict[str, object], output: object
    ) -> None:
        if not model.training:
            return
        batches = [one for one in (*given, *named.values()) if isinstance(one, torch.Tensor) and one.dim()]
        self.examples += len(batches[0]) if batches else 0
        loss = _loss_of(output)
        if loss is not None:
            self._batches += 1
            # Parts of a step's loss are added up; the loss of a batch is a mean in itself.
            self._parts = named.get(NORMALISER) is not None
            total = loss.detach().float().mean()
            self._losses = total if self._losses is None else self._losses + total


def _loss_of(output: object) -> torch.Tensor | None:
    found = (
        cast("Mapping[str, object]", output).get("loss")
        if isinstance(output, Mapping)
        else getattr(output, "loss", None)
    )
    return found if isinstance(found, torch.Tensor) else None
