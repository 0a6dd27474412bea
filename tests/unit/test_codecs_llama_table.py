"""The table of sizes in the design: Llama-3.2-1B as its state_dict is sent."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import cast

from tensorbus.codecs.chain import bind
from tensorbus.codecs.dtypes import DTYPES
from tensorbus.codecs.item import ItemSpec
from tensorbus.codecs.pipeline import Pipeline

LLAMA = Path(__file__).parents[2] / "bench" / "llama.py"
SHAPES = cast("Callable[[], dict[str, tuple[int, ...]]]", runpy.run_path(str(LLAMA))["shapes"])()
FLOAT32 = DTYPES["float32"]
COUNT = sum(prod(shape) for shape in SHAPES.values())


def mebibytes(nbytes: float) -> float:
    """To the second decimal, as the table has them."""
    return round(nbytes / 2**20, 2)


def encoded(codec: str) -> int:
    """Bytes of payload of the whole state_dict."""
    pipeline = Pipeline.parse(codec)
    specs = [ItemSpec(name, FLOAT32, shape) for name, shape in SHAPES.items()]
    return sum(bind(pipeline, spec).encoded_size(spec.count) for spec in specs)


def test_full_precision() -> None:
    """147 tensors, 5716.26 MiB."""
    assert len(SHAPES) == 147
    assert mebibytes(encoded("none")) == 5716.26


def test_half_precision() -> None:
    """fp16 and bf16: 2858.13 MiB."""
    assert mebibytes(encoded("fp16")) == mebibytes(encoded("bf16")) == 2858.13


def test_eight_bits() -> None:
    """int8: 1429.06 MiB of codes and 1.54 MiB of absmax and maps; we leave out the maps, which never change.

    The table counts what bitsandbytes keeps for each tensor, with the map of 256 float32 that codes refer to.
    """
    absmax = encoded("int8") - COUNT
    assert mebibytes(COUNT) == 1429.06
    assert mebibytes(absmax + len(SHAPES) * 256 * 4) == 1.54
    assert mebibytes(absmax) == 1.4


def test_four_bits() -> None:
    """fp4 and nf4: 714.53 MiB of codes and 89.33 MiB of absmax and maps of 16 float32, 14.06 % of fp32."""
    for codec in ("fp4", "nf4"):
        absmax = encoded(codec) - COUNT // 2
        assert mebibytes(COUNT / 2) == 714.53
        assert mebibytes(absmax + len(SHAPES) * 16 * 4) == 89.33
        assert round(100 * encoded(codec) / (4 * COUNT), 2) == 14.06


def test_double_quantised_absmax_is_smaller() -> None:
    """nf4-dq: 12.90 % of fp32 where nf4 takes 14.06 %."""
    assert encoded("nf4-dq") < encoded("nf4")
    assert round(100 * encoded("nf4-dq") / (4 * COUNT), 2) == 12.90
