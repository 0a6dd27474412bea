"""bitsandbytes as it comes, on the CPU, in a process of its own so that its memory is told apart.

python bench/stock_bitsandbytes.py 1073741824   # bytes of fp32; prints JSON
"""

# bitsandbytes and torch are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportArgumentType=false

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import resident
from codec_speed import STEPS, THREADS, WEIGHT, Speed

if TYPE_CHECKING:
    import torch

COLUMNS = 4096


def measure(nbytes: int) -> dict[str, Speed]:
    """Its nf4, fp4 and int8, each step once; the whole tensor in one call, as its users do."""
    done = subprocess.run(
        [sys.executable, __file__, str(nbytes)], check=True, stdout=subprocess.PIPE, text=True
    )
    found = cast("dict[str, dict[str, object]]", json.loads(done.stdout))
    return {
        name: Speed(
            {step: tuple(pair) for step, pair in cast("dict[str, list[float]]", row["rates"]).items()},  # pyright: ignore[reportUnknownArgumentType]
            cast(float, row["extra_mib"]),
        )
        for name, row in found.items()
    }


def _run(nbytes: int) -> dict[str, object]:
    import torch
    from bitsandbytes import functional

    values = torch.randn(nbytes // 4 // COLUMNS, COLUMNS) * 0.02
    sums = torch.zeros_like(values)

    def four_bit(kind: str) -> Callable[[], object]:
        return lambda: functional.quantize_4bit(values, blocksize=64, quant_type=kind)

    found: dict[str, object] = {}
    for name, encode, decode in (
        ("nf4", four_bit("nf4"), functional.dequantize_4bit),
        ("fp4", four_bit("fp4"), functional.dequantize_4bit),
        (
            "int8",
            lambda: functional.quantize_blockwise(values, blocksize=4096),
            functional.dequantize_blockwise,
        ),
    ):
        codes, state = cast("tuple[torch.Tensor, object]", encode())
        steps: dict[str, Callable[[], object]] = {
            "encode": encode,
            "decode": lambda decode=decode, codes=codes, state=state: decode(codes, state),
            "accumulate": lambda decode=decode, codes=codes, state=state: sums.add_(
                decode(codes, state), alpha=WEIGHT
            ),
        }
        before = resident.forget_peak()
        rates = {step: [_rate(steps[step], threads, nbytes) for threads in THREADS] for step in STEPS}
        found[name] = {"rates": rates, "extra_mib": (resident.peak() - before) / (1 << 20)}
    return found


def _rate(work: Callable[[], object], threads: int, nbytes: int) -> float:
    import torch

    torch.set_num_threads(threads)
    began = time.perf_counter()
    work()
    return nbytes / (time.perf_counter() - began) / 1e9


if __name__ == "__main__":
    print(json.dumps(_run(int(sys.argv[1]))))
