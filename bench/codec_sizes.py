"""Size of a state_dict of the shape of Llama-3.2-1B under every codec; it is really encoded.

    python bench/codec_sizes.py                     # all codecs
    python bench/codec_sizes.py --codecs nf4 int8

The weights are random, N(0, 0.02²), and never in memory as a whole: each slice of each tensor is copied from
a tile and encoded. The error is that of decoded values, its mean square over that of the values. For speeds
see codecs.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import llama
import numpy as np
import numpy.typing as npt
import resident

from tensorbus.codecs import registry
from tensorbus.codecs.base import Quantizer
from tensorbus.codecs.dtypes import DTYPES

FP32 = DTYPES["float32"]
MIB = 1 << 20
SLICE = 1 << 20
"""Elements; a multiple of every codec's blocksize."""
TILE = 1 << 22
CODECS = tuple(registry.QUANTIZERS)


@dataclass
class Result:
    """What one codec did with the whole state_dict: bytes, sums of squares."""

    nbytes: int = 0
    error: float = 0.0
    power: float = 0.0


class Bench:
    """The buffers that every slice goes through."""

    def __init__(self, seed: int) -> None:
        self._tile = np.random.default_rng(seed).standard_normal(TILE, np.float32) * np.float32(0.02)
        # Filled, not only reserved: their pages are there before the resident size is first taken.
        self._values, self._decoded = (np.full(SLICE, 1, np.float32) for _ in range(2))
        self._payload = memoryview(bytearray(5 * SLICE))

    def measure(self, quantizer: Quantizer) -> Result:
        """Encode every slice, and decode some."""
        result = Result()
        for number, count in enumerate(slices()):
            self._fill(number, count)
            encoded = quantizer.encode(_bytes(self._values[:count]), FP32, self._payload)
            result.nbytes += encoded.nbytes
            if number % 50 == 0:
                quantizer.decode(self._payload[: encoded.nbytes], FP32, _bytes(self._decoded[:count]))
                self._compare(count, result)
        return result

    def _fill(self, number: int, count: int) -> None:
        # Another part of the tile and another scale for each slice, so that no two are the same.
        start = number * 7919 * 64 % (TILE - count)
        np.multiply(
            self._tile[start : start + count], np.float32(1 + number % 97 / 97), out=self._values[:count]
        )

    def _compare(self, count: int, result: Result) -> None:
        values, decoded = self._values[: min(count, 65536)], self._decoded[: min(count, 65536)]
        result.error += float(np.square(decoded - values, dtype=np.float64).sum())
        result.power += float(np.square(values, dtype=np.float64).sum())


def slices() -> Iterator[int]:
    """The number of elements of each slice of each tensor."""
    for shape in llama.shapes().values():
        count = prod(shape)
        for start in range(0, count, SLICE):
            yield min(SLICE, count - start)


def _bytes(values: npt.NDArray[np.float32]) -> memoryview:
    return values.view(np.uint8).data


def main() -> None:
    """Print one row for each codec as it is done."""
    parser = argparse.ArgumentParser(description="Size of a Llama-3.2-1B-shaped state_dict under every codec")
    parser.add_argument("--codecs", nargs="+", choices=CODECS, default=CODECS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    original = 4 * sum(map(prod, llama.shapes().values()))
    bench = Bench(arguments.seed)
    before = resident.forget_peak()
    print(f"{len(llama.shapes())} tensors, {original / MIB:.2f} MiB of fp32\n")
    print(f"{'codec':10}{'MiB':>10}{'% of fp32':>11}{'error':>11}")
    for name in arguments.codecs:
        result = bench.measure(registry.quantizer(name))
        print(
            f"{name:10}{result.nbytes / MIB:10.2f}{100 * result.nbytes / original:11.2f}"
            f"{result.error / result.power:11.2e}",
            flush=True,
        )
    print(f"\npeak resident size beyond the slices' own buffers: {(resident.peak() - before) / MIB:.1f} MiB")


if __name__ == "__main__":
    main()
