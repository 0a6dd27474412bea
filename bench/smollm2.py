"""A real update: what one round of the demo's fine-tuning changes in SmolLM2-135M-Instruct."""

# torch and safetensors are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

STEPS = 6
"""Of AdamW with batches of 8 dialogues, as a site of the demo trains in one round."""


def update(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """The change of each tensor; made once, then read from ``path``."""
    from safetensors.numpy import load_file

    if not path.is_file():
        _train(path)
    return load_file(path)


def _train(path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from tensorbus.demo.corpus import corpus_folder, read_topics, share_out
    from tensorbus.demo.model import WEIGHTS, load, prepare
    from tensorbus.demo.training import Trainer

    folder = path.parent / "smollm2"
    if not (folder / WEIGHTS).is_file():
        prepare(folder)
    model, tokenizer = load(folder, seed=0)
    before = load_file(folder / WEIGHTS)
    model.load_state_dict(before, strict=False)
    model.tie_weights()
    share = share_out(read_topics(corpus_folder()), 2)[0]
    Trainer(model, tokenizer, share, seed=0).train(STEPS, lambda step, loss: None)
    with torch.no_grad():
        changes = {name: (value - before[name]).contiguous() for name, value in model.named_parameters()}
    save_file(changes, path)
