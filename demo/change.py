"""Base: the pretrained weights, which every site has on disk, so that only the change from them need travel.

Why: nf4 has 16 values for the weights of a block. A round of fine-tuning moves a weight by far less than the
distance between two of them, so weights that are sent themselves come back as they were; the round is lost.
The change from the pretrained weights, sent in nf4, loses a tenth of itself. The mean of the changes is the
change of the mean, so the aggregator need not know which it is. ``docs/demo.md`` has figures.
"""

# safetensors is typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


class Base:
    """Adds the weights of a file to a model's, or takes them away: in place, a tensor at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add_to(self, model: nn.Module) -> None:
        """Turn a change into a model."""
        self._apply(model, 1.0)

    def subtract_from(self, model: nn.Module) -> None:
        """Turn a model into its change."""
        self._apply(model, -1.0)

    def _apply(self, model: nn.Module, factor: float) -> None:
        import torch
        from safetensors import safe_open

        with torch.no_grad(), safe_open(self._path, "pt") as stored:
            for name, parameter in model.named_parameters():
                parameter.add_(stored.get_tensor(name), alpha=factor)
