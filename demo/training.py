"""Trainer: ordinary fine-tuning on short dialogues, with nothing in it about federations."""

# transformers and torch are typed in part only.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from .corpus import Dialogue, Share

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

BATCH = 8
POOL = 4 * BATCH
MAX_TOKENS = 40
"""Of one dialogue; the rest of a longer one is cut off."""
LEARNING_RATE = 1e-4
EVALUATION_BATCH = 12

Line = tuple[list[int], int]
"""A dialogue's tokens, and how many of them come before the answer."""
Told = Callable[[int, float], None]
"""Called after each step with its number, from 1, and its loss."""


class Trainer:
    """Trains a model on one site's share, full precision, all parameters.

    Args:
        seed: decides the order of the dialogues, and nothing else.
    """

    def __init__(
        self, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, share: Share, seed: int
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._random = random.Random(seed)
        self._train = [self._encode(dialogue) for dialogue in share.train]
        self._held_out = sorted((self._encode(dialogue) for dialogue in share.held_out), key=_length)
        self._batches: list[list[Line]] = []

    def train(self, steps: int, told: Told) -> tuple[float, int]:
        """Some steps of AdamW with a fresh state; the mean loss, and how many dialogues were seen."""
        optimizer = torch.optim.AdamW(
            self._model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0, fused=True
        )
        losses: list[float] = []
        for step in range(1, steps + 1):
            loss, _ = self._loss(self._next_batch())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            told(step, losses[-1])
        return sum(losses) / len(losses), steps * BATCH

    @torch.no_grad()
    def evaluate(self) -> tuple[float, int]:
        """Mean loss over the answers of the held-out dialogues, and of how many tokens it is the mean."""
        total, tokens = 0.0, 0
        for start in range(0, len(self._held_out), EVALUATION_BATCH):
            loss, count = self._loss(self._held_out[start : start + EVALUATION_BATCH])
            total, tokens = total + loss.item() * count, tokens + count
        return total / tokens, tokens

    def _next_batch(self) -> Sequence[Line]:
        """The next batch of a pass over the share in random order, and of another pass when it is over.

        Dialogues of like length go together, out of a few batches drawn at once: a third less to compute.
        """
        if not self._batches:
            lines = self._random.sample(self._train, len(self._train))
            for start in range(0, len(lines) - BATCH + 1, POOL):
                pool = sorted(lines[start : start + POOL], key=_length)
                batches = [pool[place : place + BATCH] for place in range(0, len(pool) - BATCH + 1, BATCH)]
                self._batches += self._random.sample(batches, len(batches))
        return self._batches.pop()

    def _encode(self, dialogue: Dialogue) -> Line:
        """Tokens of a dialogue in the model's chat format, and how many of them come before the answer."""
        prompt = self._tokens(f"<|im_start|>user\n{dialogue.question}<|im_end|>\n<|im_start|>assistant\n")
        prompt = prompt[: MAX_TOKENS - 4]  # some of the answer has to be left
        return (prompt + self._tokens(f"{dialogue.answer}<|im_end|>\n"))[:MAX_TOKENS], len(prompt)

    def _tokens(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _loss(self, batch: Sequence[Line]) -> tuple[torch.Tensor, int]:
        """Mean cross-entropy of the answers' tokens, and how many they are.

        Padding is on the right, where a causal model cannot see it, so there is no mask to compute with; and
        the output head, a fifth of the model, computes the answers' tokens only.
        """
        longest = max(len(tokens) for tokens, _ in batch)
        tokens = torch.tensor([line + [0] * (longest - len(line)) for line, _ in batch])
        place = torch.arange(longest)
        begins = torch.tensor([begin for _, begin in batch])[:, None]
        ends = torch.tensor([len(line) for line, _ in batch])[:, None]
        answers = ((place >= begins) & (place < ends))[:, 1:]
        hidden = self._model.model(input_ids=tokens, use_cache=False).last_hidden_state
        assert hidden is not None
        logits = self._model.lm_head(hidden[:, :-1][answers])
        return cross_entropy(logits, tokens[:, 1:][answers]), int(answers.sum())


def _length(line: Line) -> int:
    return len(line[0])
