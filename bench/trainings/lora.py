"""SmolLM2-135M-Instruct with low-rank adapters (LoRA, Hu et al. 2021): only they are trained and sent."""

# transformers, safetensors and torch are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy, linear
from transformers import LlamaForCausalLM

from tensorbus.demo.corpus import HELD_OUT_EVERY, Dialogue, corpus_folder, read_topics, share_out
from tensorbus.demo.model import WEIGHTS, load, prepare
from trainings.settings import LoraSettings
from trainings.trainer import Trainer

Line = tuple[list[int], int]
"""A dialogue's tokens, and how many of them come before the answer."""


class LowRank(torch.nn.Module):
    """A frozen linear layer and a change of low rank: ``x W' + scale · x A' B'``; B begins at zero."""

    def __init__(self, frozen: torch.nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self._weight = frozen.weight.detach()  # no parameter of this module: it is neither trained nor sent
        self._scale = scale
        self.a = torch.nn.Parameter(torch.randn(rank, frozen.in_features) / frozen.in_features**0.5)
        self.b = torch.nn.Parameter(torch.zeros(frozen.out_features, rank))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Shapes as the frozen layer's."""
        return linear(values, self._weight) + self._scale * linear(linear(values, self.a), self.b)


class LoraTrainer(Trainer):
    """Trains on the answers of dialogues.

    Args:
        folder: where the model lies as fp32; it is written there if it does not.
        seed: decides the adapters to begin with, the same at all sites; ``site`` and it the order of the
            dialogues.
        site, sites: whose topics these are, of how many that share them out as those of the demo do.
    """

    def __init__(
        self, settings: LoraSettings, folder: Path, seed: int, site: int, sites: int, total_steps: int
    ) -> None:
        self._settings = settings
        self._model = _adapted(folder, settings, seed)
        super().__init__(self._model, settings.recipe, total_steps)
        self._random = random.Random(seed + 1000 * site)
        topics = share_out(read_topics(corpus_folder()), sites)[site].topics
        lines, held_out = _lines(folder, settings.tokens)
        self._train = [line for topic, mine in lines.items() if topic in topics for line in mine]
        self._few = _spread(held_out, settings.held_out)
        self._many = _spread(held_out, settings.final)
        self._waiting: list[Line] = []

    def _next_loss(self) -> torch.Tensor:
        if len(self._waiting) < self.recipe.batch:
            self._waiting = self._random.sample(self._train, len(self._train))
        batch = [self._waiting.pop() for _ in range(self.recipe.batch)]
        total, count = self._loss(batch)
        return total / count

    @torch.no_grad()
    def evaluate(self, part: int, parts: int, *, final: bool) -> tuple[float, int]:
        """As `Trainer.evaluate` says; tokens are those of the answers."""
        lines = sorted((self._many if final else self._few)[part::parts], key=lambda line: len(line[0]))
        total, tokens = 0.0, 0
        for start in range(0, len(lines), 8):
            loss, count = self._loss(lines[start : start + 8])
            total, tokens = total + loss.item(), tokens + count
        return total, tokens

    def _loss(self, batch: Sequence[Line]) -> tuple[torch.Tensor, int]:
        """Summed cross-entropy of the answers' tokens, and how many they are; padding is on the right."""
        longest = max(len(tokens) for tokens, _ in batch)
        tokens = torch.tensor([line + [0] * (longest - len(line)) for line, _ in batch])
        places = torch.arange(longest)
        begins = torch.tensor([begin for _, begin in batch])[:, None]
        ends = torch.tensor([len(line) for line, _ in batch])[:, None]
        answers = ((places >= begins) & (places < ends))[:, 1:]
        hidden = self._model.model(input_ids=tokens, use_cache=False).last_hidden_state
        assert hidden is not None
        logits = self._model.lm_head(hidden[:, :-1][answers])
        return cross_entropy(logits, tokens[:, 1:][answers], reduction="sum"), int(answers.sum())


def _adapted(folder: Path, settings: LoraSettings, seed: int) -> LlamaForCausalLM:
    """The pretrained model, frozen, with fresh adapters on the queries and values of every layer."""
    if not (folder / WEIGHTS).is_file():
        prepare(folder)
    model, _ = load(folder, seed)
    model.load_state_dict(_pretrained(folder), strict=False, assign=True)
    model.tie_weights()
    model.requires_grad_(requires_grad=False)
    torch.manual_seed(seed)
    for layer in model.model.layers:
        for name in ("q_proj", "v_proj"):
            frozen = getattr(layer.self_attn, name)
            setattr(layer.self_attn, name, LowRank(frozen, settings.rank, settings.scale))
    return model


@functools.cache
def _pretrained(folder: Path) -> dict[str, torch.Tensor]:
    """The weights, which nobody trains, and the models of all sites have in common."""
    return load_file(folder / WEIGHTS)


@functools.cache
def _lines(folder: Path, longest: int) -> tuple[dict[str, list[Line]], list[Line]]:
    """The dialogues to train on, by topic, and those held out; read once."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode(dialogue: Dialogue) -> Line:
        asked = f"<|im_start|>user\n{dialogue.question}<|im_end|>\n<|im_start|>assistant\n"
        prompt = tokenizer.encode(asked, add_special_tokens=False)[: longest - 4]
        answer = tokenizer.encode(f"{dialogue.answer}<|im_end|>\n", add_special_tokens=False)
        return (prompt + answer)[:longest], len(prompt)

    train: dict[str, list[Line]] = {}
    held_out: list[Line] = []
    for topic, dialogues in read_topics(corpus_folder()).items():
        mine = train[topic] = []
        for place, dialogue in enumerate(dialogues, start=1):
            (mine if place % HELD_OUT_EVERY else held_out).append(encode(dialogue))
    return train, held_out


def _spread(lines: Sequence[Line], count: int) -> list[Line]:
    return [lines[place * len(lines) // count] for place in range(count)]
