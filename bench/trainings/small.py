"""A small Llama on bytes, trained from scratch."""

# transformers and torch are typed in part only.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from trainings.settings import SmallSettings
from trainings.text import Topic
from trainings.trainer import Trainer

VOCABULARY = 128
"""ASCII."""
EVALUATION_BATCH = 32


class SmallTrainer(Trainer):
    """Trains on windows at random places of its topics.

    Args:
        seed: decides the weights to begin with, the same at all sites; ``site`` and it the order of the text.
        mine: this site's topics.
    """

    def __init__(
        self,
        settings: SmallSettings,
        seed: int,
        site: int,
        mine: Sequence[Topic],
        everyone: Sequence[Topic],
        total_steps: int,
    ) -> None:
        self._settings = settings
        self._model = _fresh_model(settings, seed)
        super().__init__(self._model, settings.recipe, total_steps)
        self._random = torch.Generator().manual_seed(1000 * seed + site + 1)
        self._text = torch.cat([topic.train for topic in mine])
        self._few = _held_out(everyone, settings.held_out, settings.window)
        self._many = _held_out(everyone, settings.final, settings.window)

    def _next_loss(self) -> torch.Tensor:
        length = self._settings.window + 1
        starts = torch.randint(
            self._text.numel() - length + 1, (self.recipe.batch, 1), generator=self._random
        )
        return self._loss(self._text[starts + torch.arange(length)])

    @torch.no_grad()
    def evaluate(self, part: int, parts: int, *, final: bool) -> tuple[float, int]:
        """As `Trainer.evaluate` says; a token is a byte."""
        windows = (self._many if final else self._few)[part::parts]
        total, count = 0.0, windows.shape[0] * self._settings.window
        for start in range(0, windows.shape[0], EVALUATION_BATCH):
            batch = windows[start : start + EVALUATION_BATCH]
            total += self._loss(batch).item() * batch.shape[0] * self._settings.window
        return total, count

    def _loss(self, windows: torch.Tensor) -> torch.Tensor:
        logits = self._model(input_ids=windows[:, :-1], use_cache=False).logits
        return cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def _fresh_model(settings: SmallSettings, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=settings.hidden,
            intermediate_size=settings.intermediate,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.heads,
            max_position_embeddings=settings.window,
            tie_word_embeddings=True,
            initializer_range=settings.spread,
        )
    )


def _held_out(topics: Sequence[Topic], count: int, window: int) -> torch.Tensor:
    """So many windows of each topic's held-out blocks, evenly spread; topics take turns."""
    found: list[torch.Tensor] = []
    for topic in topics:
        pieces = topic.held_out.unfold(1, window + 1, window + 1).flatten(0, 1)
        found.append(pieces[torch.arange(count) * len(pieces) // count])
    return torch.stack(found, dim=1).flatten(0, 1)
