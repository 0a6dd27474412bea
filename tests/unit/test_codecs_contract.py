"""Promises that every quantizer keeps, whatever its code is."""

from __future__ import annotations

import threading
import tracemalloc
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorbus.codecs.base import Accumulator, Quantizer
from tensorbus.codecs.dtypes import DTYPES, DType
from tensorbus.codecs.registry import QUANTIZERS, quantizer
from tensorbus.errors import NonFiniteValues, PayloadMismatch, UnsupportedDtype

Array = npt.NDArray[np.generic]

ALL = tuple(QUANTIZERS)
LOSSY = tuple(name for name in ALL if not quantizer(name).exact)
INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"]
SOURCES = ("float64", "float32", "float16", "bfloat16")
PAIRS = [(name, source) for name in ALL for source in SOURCES if quantizer(name).accepts(DTYPES[source])]

# Relative to the largest value: half the widest gap between levels, and a little for 16-bit originals. Of
# outliers, the two bits of lloyd make 1.5 times the root mean square.
TOLERANCE = {
    "none": 0.0,
    "fp16": 1e-3,
    "bf16": 4e-3,
    "int8": 0.012,
    "fp4": 0.17,
    "nf4": 0.153,
    "nf4-dq": 0.17,
    "uniform": 0.17,
    "lloyd": 1.0,
    "lossless": 0.0,
}


def originals(dtype: DType, count: int, seed: int = 0, scale: float = 1.0) -> Array:
    """Random values as numpy holds them; bfloat16 as its bits."""
    values = np.random.default_rng(seed).standard_normal(count) * scale
    if dtype.name == "bfloat16":
        return (values.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return values.astype(dtype.name)


def numbers(values: Array, dtype: DType) -> npt.NDArray[np.float64]:
    """What the originals stand for."""
    if dtype.name == "bfloat16":
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    return values.astype(np.float64)


def raw(values: Array) -> memoryview:
    """The array's own bytes."""
    return values.reshape(-1).view(np.uint8).data


def encode(codec: Quantizer, values: Array, dtype: DType) -> memoryview:
    """The payload, made in a buffer with room to spare."""
    room = codec.encoded_size(values.size, dtype)
    out = memoryview(bytearray(room + 5))
    encoded = codec.encode(raw(values), dtype, out)
    assert bytes(out[room:]) == bytes(5), "wrote beyond its room"
    return out[: encoded.nbytes]


def decode(codec: Quantizer, payload: memoryview, dtype: DType, like: Array) -> Array:
    """The values of a payload in a new array."""
    values = np.empty_like(like)
    codec.decode(payload, dtype, raw(values))
    return values


@pytest.mark.parametrize(("name", "source"), PAIRS)
@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 4097, 65536, 65537, 150_001])
def test_payload_has_the_announced_size_and_decodes_close(name: str, source: str, count: int) -> None:
    """A payload is as long as planned, or at most so; its values come back in their dtype, about the same."""
    codec, dtype = quantizer(name), DTYPES[source]
    values = originals(dtype, count, seed=count)
    payload = encode(codec, values, dtype)
    planned = codec.encoded_size(count, dtype)
    assert len(payload) == planned if codec.fixed_size else 0 < len(payload) <= planned
    before, after = numbers(values, dtype), numbers(decode(codec, payload, dtype, values), dtype)
    assert np.max(np.abs(before - after)) <= TOLERANCE[name] * np.max(np.abs(before)) * 1.01


@pytest.mark.parametrize(("name", "source"), PAIRS)
def test_parts_of_a_payload_decode_as_in_the_whole(name: str, source: str) -> None:
    """Wherever it is cut, and up to its end; the parts are payloads of their own, bit for bit."""
    codec, dtype = quantizer(name), DTYPES[source]
    assert codec.grain % codec.blocksize == 0 and codec.grain
    count = 2 * codec.grain + max(codec.grain // 3, 1001)
    values = originals(dtype, count, seed=5)
    payload = encode(codec, values, dtype)
    whole = decode(codec, payload, dtype, values)
    bounds = [(0, codec.grain), (codec.grain, 2 * codec.grain), (codec.grain, count), (0, count)]
    for start, stop in [*bounds, (2 * codec.grain, count)]:
        part = codec.cut(payload, dtype, count, start, stop)
        assert np.array_equal(decode(codec, part, dtype, values[start:stop]), whole[start:stop])
    first, rest = 2 * codec.grain, values[2 * codec.grain :]
    for damaged in (payload[:-1], memoryview(bytes(payload) + b"x")):
        with pytest.raises(PayloadMismatch):
            decode(codec, codec.cut(damaged, dtype, count, first, count), dtype, rest)


@pytest.mark.parametrize(("name", "source"), PAIRS)
def test_slices_give_the_codes_of_the_whole(name: str, source: str) -> None:
    """A tensor cut at multiples of the blocksize decodes to the same bits as when it is encoded whole."""
    codec, dtype = quantizer(name), DTYPES[source]
    values = originals(dtype, 16384 * 5 + 777)
    whole = decode(codec, encode(codec, values, dtype), dtype, values)
    for step in (codec.blocksize, 3 * codec.blocksize, 16384 * 2):
        if values.size // step > 500:
            continue
        parts = [values[start : start + step] for start in range(0, values.size, step)]
        decoded = [decode(codec, encode(codec, part, dtype), dtype, part) for part in parts]
        assert raw(np.concatenate(decoded)) == raw(whole)


@settings(max_examples=30, deadline=None)
@given(
    pair=st.sampled_from(PAIRS),
    count=st.integers(1, 70_000),
    wide=st.booleans(),
    weight=st.floats(-1e3, 1e3),
    seed=st.integers(0, 2**32 - 1),
)
def test_accumulate_is_a_weighted_sum_of_what_decodes(
    pair: tuple[str, str], count: int, wide: bool, weight: float, seed: int
) -> None:
    """accumulate() adds weight times the values that decode() gives, in the accumulator's precision."""
    codec, dtype = quantizer(pair[0]), DTYPES[pair[1]]
    values = originals(dtype, count, seed)
    payload = encode(codec, values, dtype)
    start = np.random.default_rng(seed).standard_normal(count)
    sums = cast(Accumulator, start.astype(np.float64 if wide else np.float32))
    decoded = numbers(decode(codec, payload, dtype, values), dtype).astype(
        sums.dtype if pair != ("none", "float64") else np.float32
    )
    expected = sums + sums.dtype.type(weight) * decoded
    codec.accumulate(payload, dtype, sums, weight)
    if pair == ("none", "float64") and wide:
        exact = start + weight * numbers(values, dtype)
        assert np.array_equal(sums, exact)
    else:
        np.testing.assert_allclose(sums, expected, rtol=1e-6, atol=1e-6 * abs(weight) + 1e-12)


@pytest.mark.parametrize(("name", "source"), [pair for pair in PAIRS if pair[0] in LOSSY])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 70_000, 99_999])
def test_nan_and_inf_are_refused_in_what_is_quantised(name: str, source: str, bad: float, at: int) -> None:
    """A lossy codec refuses a tensor with NaN or Inf, wherever it hides."""
    codec, dtype = quantizer(name), DTYPES[source]
    values = originals(dtype, 100_000)
    if source == "bfloat16":
        values[at] = np.uint16(np.float32(bad).view(np.uint32) >> 16)
    else:
        values[at] = bad
    with pytest.raises(NonFiniteValues):
        encode(codec, values, dtype)


@pytest.mark.parametrize("name", ALL)
def test_payload_with_nan_never_enters_an_accumulator_unnoticed(name: str) -> None:
    """A payload that decodes to NaN is refused by accumulate(): bytes all ones, or NaN sent exactly."""
    codec, dtype = quantizer(name), DTYPES["float32"]
    ones = memoryview(b"\xff" * codec.encoded_size(1000, dtype))
    payload = encode(codec, np.full(1000, np.nan, np.float32), dtype) if codec.exact else ones
    # Where sizes vary, bytes all ones are no payload in the first place.
    refusals = NonFiniteValues if codec.exact or codec.fixed_size else PayloadMismatch
    with pytest.raises(refusals):
        codec.accumulate(payload, dtype, np.zeros(1000, np.float32), 1.0)


def test_large_finite_values_whose_sum_overflows_are_no_nan() -> None:
    """The check for NaN and Inf is not fooled by finite values that are too large to be summed."""
    values = np.full(1000, 3e38, np.float32)
    sums = np.zeros(1000, np.float32)
    for name in ("none", "nf4", "int8", "bf16"):
        codec = quantizer(name)
        codec.accumulate(encode(codec, values, DTYPES["float32"]), DTYPES["float32"], sums, 1e-3)
    np.testing.assert_allclose(sums, 4 * 3e35, rtol=0.01)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("difference", [-1, 1, 1000])
def test_payload_of_another_size_is_refused(name: str, difference: int) -> None:
    """decode() and accumulate() check the payload's size before they touch a value."""
    codec, dtype = quantizer(name), DTYPES["float32"]
    size = codec.encoded_size(1000, dtype) + difference
    untouched = np.zeros(1000, np.float32)
    with pytest.raises(PayloadMismatch):
        codec.decode(memoryview(bytes(size)), dtype, raw(untouched))
    with pytest.raises(PayloadMismatch):
        codec.accumulate(memoryview(bytes(size)), dtype, untouched, 1.0)


@pytest.mark.parametrize("name", LOSSY)
def test_integers_bools_and_small_floats_are_never_quantised(name: str) -> None:
    """Lossy codecs accept four floating-point dtypes at most, and no 16-bit codec accepts a 16-bit dtype."""
    accepted = {one for one, dtype in DTYPES.items() if quantizer(name).accepts(dtype)}
    assert accepted == ({"float64", "float32"} if name in ("fp16", "bf16") else set(SOURCES))


@pytest.mark.parametrize("name", ALL)
def test_configuration_rebuilds_the_quantizer(name: str) -> None:
    """config() is JSON that travels with the data and gives the same codec again."""
    codec = quantizer(name)
    again = quantizer(codec.config())
    assert type(again) is type(codec)
    assert (again.config(), again.blocksize, again.name) == (codec.config(), codec.blocksize, name)


@pytest.mark.parametrize("name", ALL)
def test_unaligned_buffers_work(name: str) -> None:
    """Payloads and slices may lie at odd addresses, as they do inside frames."""
    codec, dtype = quantizer(name), DTYPES["float32"]
    values = originals(dtype, 999)
    shifted = memoryview(bytearray(values.nbytes + 1))[1:]
    shifted[:] = raw(values)
    out = memoryview(bytearray(codec.encoded_size(999, dtype) + 3))[3:]
    out = out[: codec.encode(shifted, dtype, out).nbytes]
    assert out == encode(codec, values, dtype)
    back = memoryview(bytearray(values.nbytes + 1))[1:]
    codec.decode(out, dtype, back)
    assert back == raw(decode(codec, out, dtype, values))


@pytest.mark.parametrize(("name", "source"), PAIRS)
def test_work_takes_no_memory_that_grows_with_the_slice(name: str, source: str) -> None:
    """Once a thread has its scratch, 4 million values are worked on in less than 512 KiB of new memory."""
    codec, dtype = quantizer(name), DTYPES[source]
    values = originals(dtype, 1 << 22)
    payload = memoryview(bytearray(codec.encoded_size(values.size, dtype)))
    back, sums = np.empty_like(values), np.zeros(values.size, np.float32)

    def work(count: int) -> None:
        part = payload[: codec.encoded_size(count, dtype)]
        part = part[: codec.encode(raw(values[:count]), dtype, part).nbytes]
        codec.decode(part, dtype, raw(back[:count]))
        codec.accumulate(part, dtype, sums[:count], 0.5)

    work(1 << 16)
    tracemalloc.start()
    try:
        work(1 << 22)
        assert tracemalloc.get_traced_memory()[1] < 512 << 10
    finally:
        tracemalloc.stop()


def test_threads_do_not_share_scratch() -> None:
    """Several threads encode and decode at once, each to the right result."""
    dtype = DTYPES["float32"]
    wrong: list[str] = []

    def work(name: str, seed: int) -> None:
        codec, values = quantizer(name), originals(dtype, 300_000, seed)
        expected = bytes(encode(codec, values, dtype))
        wrong.extend(name for _ in range(5) if bytes(encode(codec, values, dtype)) != expected)

    threads = [threading.Thread(target=work, args=(name, seed)) for seed, name in enumerate(LOSSY)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    "source", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"]
)
def test_integers_are_summed_exactly_in_float64(source: str) -> None:
    """``none`` adds integers and bools to a float64 accumulator without rounding them to float32."""
    dtype = DTYPES[source]
    values = np.arange(70_000).astype(source)
    if dtype.itemsize == 4:
        values += np.array(2**24 + 1, source)
    sums = np.zeros(values.size)
    quantizer("none").accumulate(raw(values), dtype, sums, 3.0)
    assert np.array_equal(sums, 3 * values.astype(np.float64))


@pytest.mark.parametrize("source", ["complex64", "float8_e4m3fn"])
def test_what_cannot_be_summed_is_refused(source: str) -> None:
    """Complex numbers and 8-bit floats are refused by name, not reinterpreted."""
    dtype = DTYPES[source]
    with pytest.raises(UnsupportedDtype, match=source):
        quantizer("none").accumulate(memoryview(bytes(10 * dtype.itemsize)), dtype, np.zeros(10), 1.0)
