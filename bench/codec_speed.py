"""How fast the codecs are: one tensor, cut as it is sent, on one thread and on two."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import resident

from tensorbus.codecs.base import SliceCodec
from tensorbus.codecs.chain import bind
from tensorbus.codecs.context import NO_CONTEXT
from tensorbus.codecs.dtypes import DTYPES
from tensorbus.codecs.item import ItemSpec
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.streaming.frames import FRAME_BYTES
from tensorbus.streaming.slicing import slice_bounds, slice_elements

THREADS = (1, 2)
STEPS = ("encode", "decode", "accumulate")
TILE = 1 << 22
WEIGHT = 0.25

Slice = tuple[int, int]
"""Offset and count, in elements."""


@dataclass
class Speed:
    """GB/s of original values, each step with one thread and with two; MiB beyond what the caller gave."""

    rates: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    extra_mib: float = 0.0


class Bench:
    """The tensor, a second one to decode into, and two threads.

    Args:
        nbytes: of the tensor; its values are N(0, 0.02²).
        runs: of each step; the best one counts.
        dtype: float32 or bfloat16.
    """

    def __init__(self, nbytes: int, runs: int, dtype: str = "float32") -> None:
        self._dtype = DTYPES[dtype]
        count = nbytes // self._dtype.itemsize
        tile = np.random.default_rng(0).standard_normal(TILE, np.float32) * np.float32(0.02)
        self._values = np.resize(tile if dtype == "float32" else tile.view(np.uint16)[1::2], count)
        self._out = np.full_like(self._values, 0)  # a page that was never written does not exist yet
        self._sums = self._out.view(np.float32) if dtype == "float32" else np.full(count, 0, np.float32)
        self._runs = runs
        self._pool = ThreadPoolExecutor(max(THREADS))
        # A frame for each thread, its pages there before anything is timed.
        self._frames = [memoryview(bytearray(FRAME_BYTES)) for _ in range(max(THREADS))]

    def close(self) -> None:
        """End the threads and let go of the tensors."""
        self._pool.shutdown()
        del self._values, self._out, self._sums

    def memcpy(self, threads: int) -> float:
        """GB/s of copying the tensor."""
        step = len(self._values) // threads
        parts = [(start, step) for start in range(0, step * threads, step)]

        def copy(_: int, mine: Sequence[Slice]) -> None:
            for start, count in mine:
                np.copyto(self._out[start : start + count], self._values[start : start + count])

        return self._best(copy, parts, threads)

    def measure(self, pipeline: str) -> Speed:
        """All steps of one pipeline."""
        spec = ItemSpec("tensor", self._dtype, (len(self._values),))
        codec = bind(Pipeline.parse(pipeline), spec, NO_CONTEXT)
        slices = slice_bounds(spec.count, slice_elements(0, spec, codec, FRAME_BYTES))
        payloads, places = self._encoded(codec, slices)

        def encode(thread: int, mine: Sequence[Slice]) -> None:
            for start, count in mine:
                codec.encode(_bytes(self._values[start : start + count]), start, self._frames[thread])

        def decode(_: int, mine: Sequence[Slice]) -> None:
            for start, count in mine:
                first, last = places[start]
                codec.decode(payloads[first:last], start, _bytes(self._out[start : start + count]))

        def accumulate(_: int, mine: Sequence[Slice]) -> None:
            for start, count in mine:
                first, last = places[start]
                codec.accumulate(payloads[first:last], start, self._sums[start : start + count], WEIGHT)

        result = Speed()
        before = resident.forget_peak()
        for name, work in zip(STEPS, (encode, decode, accumulate), strict=True):
            if name == "accumulate":
                self._sums.fill(0)
            one, two = (self._best(work, slices, threads) for threads in THREADS)
            result.rates[name] = (one, two)
        result.extra_mib = (resident.peak() - before) / (1 << 20)
        return result

    def _encoded(
        self, codec: SliceCodec, slices: Sequence[Slice]
    ) -> tuple[memoryview, dict[int, tuple[int, int]]]:
        """All payloads, one behind the other, and where that of each slice lies."""
        room = sum(codec.encoded_size(count) for _, count in slices)
        arena = np.empty(room, np.uint8).data
        places: dict[int, tuple[int, int]] = {}
        end = 0
        for start, count in slices:
            source = _bytes(self._values[start : start + count])
            encoded = codec.encode(source, start, self._frames[0])
            arena[end : end + encoded.nbytes] = self._frames[0][: encoded.nbytes]
            places[start] = (end, end + encoded.nbytes)
            end += encoded.nbytes
        return arena, places

    def _best(
        self, work: Callable[[int, Sequence[Slice]], None], slices: Sequence[Slice], threads: int
    ) -> float:
        """GB/s of the quickest run; each thread has a run of neighbouring slices."""
        share = -(-len(slices) // threads)
        shares = [slices[first : first + share] for first in range(0, len(slices), share)]
        best = float("inf")
        for _ in range(self._runs):
            began = time.perf_counter()
            for done in [self._pool.submit(work, place, mine) for place, mine in enumerate(shares)]:
                done.result()
            best = min(best, time.perf_counter() - began)
        return self._values.nbytes / best / 1e9


def _bytes(values: npt.NDArray[np.generic]) -> memoryview:
    return values.view(np.uint8).data
