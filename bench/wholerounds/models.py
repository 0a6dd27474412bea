"""Models of Llama's shape as safetensors files, written without being held in memory."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import llama
import numpy as np
import numpy.typing as npt

Shapes = dict[str, tuple[int, ...]]

MODELS = ("llama-3.2-1b", "llama-380m", "llama-80m")
"""Llama-3.2-1B; the same with 4 layers and a quarter of the vocabulary; with 1 layer and a 32nd."""
_CUT = {"llama-3.2-1b": (16, 1), "llama-380m": (4, 4), "llama-80m": (1, 32)}

TILE = 1 << 22


def shapes_of(model: str) -> Shapes:
    """Its tensors, all fp32."""
    layers, part = _CUT[model]
    found: Shapes = {}
    for name, shape in llama.shapes().items():
        pieces = name.split(".")
        if pieces[1] == "layers" and int(pieces[2]) >= layers:
            continue
        found[name] = (shape[0] // part, *shape[1:]) if shape[0] == llama.VOCABULARY else shape
    return found


def size_of(shapes: Shapes) -> int:
    """Bytes in fp32."""
    return 4 * sum(prod(shape) for shape in shapes.values())


def write(path: Path, shapes: Shapes, *, trained: bool = False) -> None:
    """Weights N(0, 0.02²), the same in every run; ``trained`` adds N(0, 0.0005²) to them."""
    chance = np.random.default_rng(1)
    weights = chance.normal(0, 0.02, TILE).astype(np.float32)
    changes = chance.normal(0, 0.0005, TILE + 1).astype(np.float32)
    header: dict[str, object] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for at, shape in enumerate(shapes.values()):
            for start in range(0, prod(shape), TILE):
                count = min(TILE, prod(shape) - start)
                part: npt.NDArray[np.float32] = np.roll(weights, 4_099 * at)[:count]
                if trained:
                    part = part + changes[:count]
                part.tofile(file)
