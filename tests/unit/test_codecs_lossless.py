"""Promises of ``lossless``: every bit comes back, in fewer bytes where there is anything to gain."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorbus.codecs.base import Accumulator
from tensorbus.codecs.dtypes import DTYPES, DType
from tensorbus.codecs.kernels import forced, usable
from tensorbus.codecs.quantizers.lossless import GROUP, Lossless
from tensorbus.codecs.registry import quantizer
from tensorbus.errors import NonFiniteValues, PayloadMismatch

Array = npt.NDArray[Any]

SOURCES = ("float32", "float64", "float16", "bfloat16")
CODEC = Lossless()


KERNELS = usable()


def upper_half(values: Array) -> npt.NDArray[np.uint16]:
    """The bits of bfloat16, cut off."""
    return (values.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def weights(count: int, dtype: str, seed: int = 0) -> Array:
    """Values as the weights of a model are; bfloat16 as its bits."""
    values = np.random.default_rng(seed).standard_normal(count) * 0.02
    return upper_half(values) if dtype == "bfloat16" else values.astype(dtype)


def raw(values: Array) -> memoryview:
    """The array's own bytes."""
    return values.reshape(-1).view(np.uint8).data


def encode(values: Array, dtype: DType) -> bytes:
    """The payload, made in a buffer of just the announced size."""
    out = memoryview(bytearray(CODEC.encoded_size(values.size, dtype)))
    return bytes(out[: CODEC.encode(raw(values), dtype, out).nbytes])


def decode(payload: bytes, dtype: DType, like: Array) -> Array:
    """The values."""
    values = np.zeros_like(like)
    CODEC.decode(memoryview(payload), dtype, raw(values))
    return values


def bits(dtype: str, values: Array) -> float:
    """Of payload, for each value."""
    return 8 * len(encode(values, DTYPES[dtype])) / values.size


def test_bfloat16_weights_take_11_bits_at_most() -> None:
    """Of 16: the exponents of normal values take 2.6 bits, the rest is noise."""
    assert bits("bfloat16", weights(1 << 20, "bfloat16")) < 10.65


@pytest.mark.parametrize(("dtype", "most"), [("float32", 26.7), ("float16", 13.6), ("float64", 57.0)])
def test_other_floats_shrink_by_their_exponents(dtype: str, most: float) -> None:
    """float32 by 5 bits of 32, float16 by 2 of 16, float64 by 7 of 64."""
    assert bits(dtype, weights(1 << 18, dtype)) < most


@pytest.mark.parametrize("wide", ["float32", "float64"])
def test_numbers_that_were_narrow_once_take_what_they_took_then(wide: str) -> None:
    """Weights of bfloat16 in a wider dtype: the planes of zeros cost nothing."""
    once = weights(1 << 18, "float32").view(np.uint32) & np.uint32(0xFFFF0000)
    assert bits(wide, once.view(np.float32).astype(wide)) < (10.65 if wide == "float32" else 12)


def test_zeros_cost_nothing_and_noise_costs_nearly_nothing_more() -> None:
    """A constant plane takes 6 bytes a group; bytes of noise are stored, with 5 bytes for each plane."""
    float32 = DTYPES["float32"]
    assert len(encode(np.zeros(3 * GROUP, np.float32), float32)) == 3 * 4 * 6
    noise = np.random.default_rng(0).integers(0, 2**32, GROUP + 1, np.uint32)
    assert len(encode(noise, float32)) == CODEC.encoded_size(noise.size, float32) == 4 * (noise.size + 2 * 5)


@settings(max_examples=40, deadline=None)
@given(
    source=st.sampled_from(SOURCES),
    count=st.one_of(st.integers(1, 3000), st.integers(1, 50_000)),
    kind=st.sampled_from(["noise", "weights", "zeros", "few"]),
    weight=st.floats(-2, 2),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_bit_comes_back_from_every_kernel(
    source: str, count: int, kind: str, weight: float, seed: int
) -> None:
    """Any pattern of bits, NaN among them; the same bytes from numpy, plain C, AVX2, AVX-512, NEON."""
    dtype, random = DTYPES[source], np.random.default_rng(seed)
    values = weights(count, source, seed)
    if kind == "noise":
        values.view(np.uint8)[:] = random.integers(0, 256, values.nbytes, np.uint8)
    elif kind == "zeros":
        values[random.random(count) < 0.9] = 0
    elif kind == "few":
        values = random.choice(values[:5], count)
    payloads: list[bytes] = []
    sums: list[bytes] = []
    for kernels, isa in KERNELS:
        with forced(kernels, isa):
            payloads.append(encode(values, dtype))
            assert raw(decode(payloads[-1], dtype, values)) == raw(values)
            for precision in (np.float32, np.float64) if kind != "noise" else ():
                total, exact = (cast(Accumulator, np.ones(count, precision)) for _ in range(2))
                CODEC.accumulate(memoryview(payloads[-1]), dtype, total, weight)
                quantizer("none").accumulate(raw(values), dtype, exact, weight)
                assert raw(total) == raw(exact)
                sums.append(total.tobytes())
    assert all(payload == payloads[0] for payload in payloads)
    assert all(total == sums[at % 2] for at, total in enumerate(sums))


@pytest.mark.parametrize("source", SOURCES)
def test_special_values_come_back(source: str) -> None:
    """Signs of zeros, payloads of NaN, infinities, denormals, the ends of the range."""
    bits_of = {2: np.uint16, 4: np.uint32, 8: np.uint64}[DTYPES[source].itemsize]
    width = 8 * DTYPES[source].itemsize
    patterns = [0, 1, 2**width - 1, 2 ** (width - 1), 2 ** (width - 1) + 1, 2 ** (width - 1) - 1]
    values = np.array([pattern ^ (1 << bit) for pattern in patterns for bit in range(width)] * 30, bits_of)
    for kernels, isa in KERNELS:
        with forced(kernels, isa):
            decoded = decode(encode(values, DTYPES[source]), DTYPES[source], values)
            assert np.array_equal(decoded, values)


def test_large_slices_are_coded_in_groups() -> None:
    """A slice of several groups is their payloads, joined; every kernel makes and reads the same."""
    dtype = DTYPES["bfloat16"]
    values = weights(2 * GROUP + 5000, "bfloat16")
    payload = b"".join(encode(values[at : at + GROUP], dtype) for at in range(0, values.size, GROUP))
    for kernels, isa in KERNELS:
        with forced(kernels, isa):
            assert encode(values, dtype) == payload
            assert np.array_equal(decode(payload, dtype, values), values)


@pytest.mark.parametrize(("kernels", "isa"), KERNELS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_are_sent_but_not_summed(kernels: str, isa: str | None, bad: float) -> None:
    """They come back as they were; an accumulator refuses them, as it does with ``none``."""
    values = weights(40_000, "float32")
    values[39_998] = bad
    with forced(kernels, isa):
        payload = encode(values, DTYPES["float32"])
        assert raw(decode(payload, DTYPES["float32"], values)) == raw(values)
        sums = np.zeros(values.size, np.float32)
        with pytest.raises(NonFiniteValues):
            CODEC.accumulate(memoryview(payload), DTYPES["float32"], sums, 1.0)


@pytest.mark.parametrize(("kernels", "isa"), KERNELS)
@pytest.mark.parametrize("source", SOURCES)
def test_a_payload_of_another_length_is_refused(kernels: str, isa: str | None, source: str) -> None:
    """Cut anywhere, or with a byte behind it, or for another number of values: a PayloadMismatch."""
    dtype = DTYPES[source]
    values = weights(40_000, source)
    payload = encode(values, dtype)
    with forced(kernels, isa):
        for wrong in (b"", payload[:3], payload[:1000], payload[:-1], payload + b"\0"):
            with pytest.raises(PayloadMismatch):
                decode(wrong, dtype, values)
            with pytest.raises(PayloadMismatch):
                CODEC.accumulate(memoryview(wrong), dtype, np.zeros(values.size, np.float32), 1.0)
        for count in (0, values.size - 1, values.size + 1):
            with pytest.raises(PayloadMismatch):
                decode(payload, dtype, np.zeros(count, values.dtype))


@settings(max_examples=150, deadline=None)
@given(
    data=st.binary(max_size=400),
    source=st.sampled_from(SOURCES),
    count=st.integers(1, 9000),
    damage=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=5),
)
def test_damaged_payloads_are_refused_or_are_values(
    data: bytes, source: str, count: int, damage: list[tuple[float, int]]
) -> None:
    """Whatever the bytes: values or a PayloadMismatch, the same from each kernel, and nothing behind them."""
    dtype = DTYPES[source]
    whole = bytearray(encode(weights(count, source), dtype))
    for place, byte in damage:
        whole[min(int(place * len(whole)), len(whole) - 1)] = byte
    for payload in (data, bytes(whole)):
        verdicts: list[bytes | None] = []
        for kernels, isa in KERNELS:
            guarded = np.full(count + 32, 7, weights(1, source).dtype)
            with forced(kernels, isa):
                try:
                    CODEC.decode(memoryview(payload), dtype, raw(guarded[:count]))
                    verdicts.append(guarded.tobytes())
                except PayloadMismatch:
                    verdicts.append(None)
            assert (guarded[count:] == 7).all()
        assert all(verdict == verdicts[0] for verdict in verdicts)
