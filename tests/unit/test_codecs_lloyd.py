"""Promises of ``lloyd``: optimal levels, the stated errors and sizes, the same bytes from every kernel."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorbus.codecs.base import Accumulator
from tensorbus.codecs.dtypes import DTYPES, DType
from tensorbus.codecs.kernels import forced, usable
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.codecs.quantizers.lloyd import BLOCKSIZES, LEVELS, Lloyd
from tensorbus.codecs.registry import quantizer
from tensorbus.codecs.rms import rms
from tensorbus.errors import InvalidSpecification, NonFiniteValues, PayloadMismatch

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float32]

FLOAT32 = DTYPES["float32"]
SOURCES = ("float32", "float64", "float16", "bfloat16")


KERNELS = usable()


def originals(dtype: DType, values: npt.NDArray[np.float64]) -> Array:
    """The values as numpy holds them in ``dtype``; bfloat16 as its bits."""
    if dtype.name == "bfloat16":
        return (values.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return values.astype(dtype.name)


def raw(values: Array) -> memoryview:
    """The array's own bytes."""
    return values.reshape(-1).view(np.uint8).data


def encode(codec: Lloyd, values: Array, dtype: DType = FLOAT32) -> bytes:
    """The payload."""
    out = bytearray(codec.encoded_size(values.size, dtype))
    assert codec.encode(raw(values), dtype, memoryview(out)).nbytes == len(out)
    return bytes(out)


def decode(codec: Lloyd, payload: bytes, like: Array, dtype: DType = FLOAT32) -> Array:
    """The values."""
    values = np.empty_like(like)
    codec.decode(memoryview(payload), dtype, raw(values))
    return values


def relative_error(before: Floats, after: Array) -> float:
    """Mean square error over mean square."""
    exact = before.astype(np.float64)
    return float(np.square(exact - after.astype(np.float64)).sum() / np.square(exact).sum())


def lloyd_max(ranks: int) -> tuple[list[float], float]:
    """Magnitudes of the optimal levels for N(0, 1), and their mean square error, by Lloyd's iteration."""

    def density(x: float) -> float:
        return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)

    def beyond(x: float) -> float:
        return math.erfc(x / math.sqrt(2)) / 2

    levels = [3 * (rank + 0.5) / ranks for rank in range(ranks)]
    while True:
        borders = [0.0, *((a + b) / 2 for a, b in pairwise(levels)), math.inf]
        cells = list(pairwise(borders))
        means = [(density(a) - density(b)) / (beyond(a) - beyond(b)) for a, b in cells]
        if max(abs(a - b) for a, b in zip(levels, means, strict=True)) < 1e-13:
            kept = sum(
                2 * (beyond(a) - beyond(b)) * level**2 for (a, b), level in zip(cells, means, strict=True)
            )
            return means, 1 - kept
        levels = means


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_levels_are_those_of_lloyd_and_max(bits: int) -> None:
    """The constants are, to the nearest float32, the fixed point of Lloyd's iteration for N(0, 1)."""
    levels, _ = lloyd_max(2 ** (bits - 1))
    assert np.array_equal(np.array(LEVELS[bits], np.float32), np.array(levels, np.float32))


@pytest.mark.parametrize(("bits", "published"), [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497)])
def test_error_on_normal_values_is_the_published_one(bits: int, published: float) -> None:
    """Relative mean square error within 1.5 % of Max's table, at bits + 4 bytes a block."""
    values = np.random.default_rng(bits).standard_normal(1 << 20, np.float32) * np.float32(0.02)
    codec = Lloyd(bits)
    assert abs(lloyd_max(2 ** (bits - 1))[1] / published - 1) < 0.001
    payload = encode(codec, values)
    assert len(payload) == (1 << 20) * bits // 8 + 4 * 1024
    assert abs(relative_error(values, decode(codec, payload, values)) / published - 1) < 0.015


def test_layout_is_the_documented_one() -> None:
    """A root mean square, then planes of bits, lowest first; the sign on top; the tail a block of its own."""
    values = np.random.default_rng(3).standard_normal(64 + 13, np.float32)
    payload = np.frombuffer(encode(Lloyd(bits=3, blocksize=64), values), np.uint8)
    thresholds = np.array([0.50054973007505, 1.0499572798554393, 1.747927491520994], np.float32)
    at = 0
    for block in (values[:64], values[64:]):
        scale = payload[at : at + 4].view(np.float32)[0]
        np.testing.assert_allclose(scale, np.sqrt(np.square(block.astype(np.float64)).mean()), rtol=1e-7)
        ranks = (np.abs(block)[:, None] > thresholds * scale).sum(axis=1)
        codes = ranks + 4 * (block < 0)
        stride = (block.size + 7) // 8
        for bit in range(3):
            plane = payload[at + 4 + bit * stride : at + 4 + (bit + 1) * stride]
            stored = np.unpackbits(plane, bitorder="little")
            assert np.array_equal(stored[: block.size], codes >> bit & 1)
            assert not stored[block.size :].any()
        at += 4 + 3 * stride
    assert at == payload.size


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(1, 4),
    blocksize=st.sampled_from(BLOCKSIZES),
    count=st.one_of(st.integers(1, 200), st.integers(1, 70_000)),
    source=st.sampled_from(SOURCES),
    scale=st.sampled_from([1.0, 1e-3, 1e4, 1e-42, 1e34]),
    zeros=st.floats(0, 1),
    weight=st.floats(-1e3, 1e3),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_kernel_gives_the_same_bytes(
    bits: int, blocksize: int, count: int, source: str, scale: float, zeros: float, weight: float, seed: int
) -> None:
    """Payloads, values and sums are equal to the bit: numpy, plain C, AVX2, AVX-512, NEON."""
    codec, dtype, random = Lloyd(bits, blocksize), DTYPES[source], np.random.default_rng(seed)
    normal = random.standard_normal(count) * (1.0 if source == "float16" else scale)
    normal[random.random(count) < zeros] = 0
    values = originals(dtype, normal)
    results: list[tuple[bytes, ...]] = []
    for kernels, isa in KERNELS:
        with forced(kernels, isa):
            payload = encode(codec, values, dtype)
            results.append((payload, decode(codec, payload, values, dtype).tobytes()))
            for precision in (np.float32, np.float64):
                sums = cast(Accumulator, np.ones(count, precision))
                codec.accumulate(memoryview(payload), dtype, sums, weight)
                results[-1] += (sums.tobytes(),)
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("count", [1, 31, 32, 33, 1000, 4096])
def test_root_mean_square_is_of_the_documented_order(count: int) -> None:
    """32 sums in float64, then halves upon halves; one rounding to float32; no value is too large."""
    for scale in (1.0, 3e38, 1e-44):
        values = np.clip(np.random.default_rng(count).standard_normal(count), -1, 1) * scale
        block = values.astype(np.float32)
        sums = [0.0] * 32
        for i, value in enumerate(block.tolist()):
            sums[i % 32] += value * value
        while len(sums) > 1:
            half = len(sums) // 2
            sums = [a + b for a, b in zip(sums[:half], sums[half:], strict=True)]
        expected = np.float32(math.sqrt(sums[0] / count))
        assert rms(block, 4096)[0] == expected
        for kernels, isa in KERNELS:
            with forced(kernels, isa):
                assert np.frombuffer(encode(Lloyd(2, 4096), block)[:4], np.float32)[0] == expected


@pytest.mark.parametrize("bits", [2, 3])
def test_slices_have_the_bytes_of_the_whole(bits: int) -> None:
    """The payloads of slices cut at multiples of the blocksize, joined, are the payload of the whole."""
    codec = Lloyd(bits)
    values = np.random.default_rng(4).standard_normal(1024 * 130 + 77, np.float32)
    whole = encode(codec, values)
    for step in (1024, 3 * 1024, 65536, 65536 + 1024):
        assert b"".join(encode(codec, values[at : at + step]) for at in range(0, values.size, step)) == whole


@pytest.mark.parametrize(("kernels", "isa"), KERNELS)
@pytest.mark.parametrize("source", SOURCES)
def test_finite_values_stay_finite(kernels: str, isa: str | None, source: str) -> None:
    """The outermost level of values at the end of a dtype's range is that end, not Inf."""
    dtype = DTYPES[source]
    largest = {"float16": 65504.0, "bfloat16": 3.3895e38}.get(source, 3.4e38)
    spread = np.where(np.arange(1024) % 2, largest, -largest)
    values = originals(dtype, spread)
    with forced(kernels, isa):
        codec = Lloyd(2)
        payload = encode(codec, values, dtype)
        sums = np.zeros(1024, np.float64)
        codec.accumulate(memoryview(payload), dtype, sums, 1.0)
    np.testing.assert_allclose(sums, spread, rtol=0.01)


def test_blocks_of_zeros_are_zeros() -> None:
    """A block of zeros comes back as zeros, with their signs."""
    values = np.zeros(3000, np.float32)
    values[::3] = -0.0
    decoded = decode(Lloyd(2), encode(Lloyd(2), values), values)
    assert raw(decoded) == raw(values)


@pytest.mark.parametrize(("kernels", "isa"), KERNELS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_are_refused(kernels: str, isa: str | None, bad: float) -> None:
    """One NaN or Inf in a tensor, wherever it is, is refused; so is a payload with one for a scale."""
    codec = Lloyd(3)
    with forced(kernels, isa):
        for at in (0, 1023, 66_000, 70_000):
            values = np.ones(70_001, np.float32)
            values[at] = bad
            with pytest.raises(NonFiniteValues):
                encode(codec, values)
        payload = np.float32(bad).tobytes() + bytes(codec.encoded_size(100, FLOAT32) - 4)
        with pytest.raises(NonFiniteValues):
            codec.accumulate(memoryview(payload), FLOAT32, np.zeros(100, np.float32), 1.0)


@settings(max_examples=40, deadline=None)
@given(data=st.binary(max_size=700), count=st.integers(1, 2000), bits=st.integers(1, 4))
def test_any_bytes_are_refused_or_are_values(data: bytes, count: int, bits: int) -> None:
    """Bytes from anywhere: of the wrong size a PayloadMismatch, of the right size numbers, NaN or Inf."""
    codec = Lloyd(bits, 64)
    size = codec.encoded_size(count, FLOAT32)
    padded = (data * (size // max(len(data), 1) + 1))[:size]
    for kernels, isa in KERNELS:
        with forced(kernels, isa):
            if len(data) != size:
                with pytest.raises(PayloadMismatch):
                    codec.accumulate(memoryview(data), FLOAT32, np.zeros(count, np.float32), 1.0)
                with pytest.raises(PayloadMismatch):
                    codec.decode(memoryview(data), FLOAT32, raw(np.zeros(count, np.float32)))
            if len(padded) == size:
                codec.decode(memoryview(padded), FLOAT32, raw(np.zeros(count, np.float32)))


def test_bits_may_be_given_without_their_name() -> None:
    """``lloyd:3`` is ``lloyd:bits=3``; other parameters have names."""
    short, long = Pipeline.parse("lloyd:3"), Pipeline.parse("lloyd:bits=3,blocksize=1024")
    assert (
        short.quantizer.config() == long.quantizer.config() == {"name": "lloyd", "bits": 3, "blocksize": 1024}
    )


@pytest.mark.parametrize("bad", [{"bits": 0}, {"bits": 5}, {"bits": True}, {"bits": 2.0}, {"blocksize": 100}])
def test_other_parameters_are_refused(bad: dict[str, object]) -> None:
    """1 to 4 bits, block sizes of powers of two from 64 to 4096."""
    with pytest.raises(InvalidSpecification):
        quantizer({"name": "lloyd", **bad})
