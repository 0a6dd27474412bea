"""The shapes of Llama-3.2-1B as its state_dict is sent: 147 tensors, output head separate."""

from __future__ import annotations

LAYERS = 16
HIDDEN = 2048
KEY_VALUE = 512
MLP = 8192
VOCABULARY = 128256


def shapes() -> dict[str, tuple[int, ...]]:
    """Shapes by name, in the order of the state_dict; in fp32 5716.26 MiB."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        found |= {f"model.layers.{layer}.{name}": shape for name, shape in _layer().items()}
    found["model.norm.weight"] = (HIDDEN,)
    found["lm_head.weight"] = (VOCABULARY, HIDDEN)
    return found


def _layer() -> dict[str, tuple[int, ...]]:
    return {
        "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
        "self_attn.k_proj.weight": (KEY_VALUE, HIDDEN),
        "self_attn.v_proj.weight": (KEY_VALUE, HIDDEN),
        "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
        "mlp.gate_proj.weight": (MLP, HIDDEN),
        "mlp.up_proj.weight": (MLP, HIDDEN),
        "mlp.down_proj.weight": (HIDDEN, MLP),
        "input_layernorm.weight": (HIDDEN,),
        "post_attention_layernorm.weight": (HIDDEN,),
    }
