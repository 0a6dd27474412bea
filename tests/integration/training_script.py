"""An ordinary training script of a Trainer: nothing in it knows of federations.

python training_script.py OUT --seed 1 --epochs 2
"""

# transformers and torch are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.utils import logging

EXAMPLES = 22
"""Of each site: the last batch of an epoch is a smaller one."""


class Sentences(Dataset[dict[str, torch.Tensor]]):
    """Texts that somebody else does not have: random, from ``seed``."""

    def __init__(self, seed: int, examples: int = EXAMPLES) -> None:
        random = torch.Generator().manual_seed(seed)
        self._tokens = torch.randint(0, 64, (examples, 8), generator=random)

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self._tokens[index], "labels": self._tokens[index]}


def new_model(*, tied: bool = True, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """A small Llama, always the same."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=64, num_key_value_heads=2, tie_word_embeddings=tied, **cast("dict[str, Any]", sizes)
    )
    model = LlamaForCausalLM(config)
    return model if dtype == torch.float32 else cast("LlamaForCausalLM", cast("Any", model).to(dtype))


def arguments(folder: Path | str, **change: Any) -> TrainingArguments:
    """Four steps an epoch: batches of 3, two of them a step, and an evaluation after each epoch."""
    given: dict[str, Any] = {
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
        "learning_rate": 0.01,
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 7,
        "max_grad_norm": 1.0,
    }
    return TrainingArguments(str(folder), **{**given, **change})


def new_trainer(folder: Path | str, model: Any, seed: int = 1, **change: Any) -> Trainer:
    """Of the model, on the site's texts."""
    data = Sentences(seed)
    return Trainer(
        model=model,
        args=arguments(folder, **change),
        train_dataset=data,
        eval_dataset=Sentences(seed + 100, 4),
    )


def main() -> None:
    """Train, and save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    trainer = new_trainer(given.out, new_model(), given.seed, num_train_epochs=given.epochs)
    trainer.train()
    trainer.save_model(str(given.out))


if __name__ == "__main__":
    main()
