"""Promises of exactness that all codecs make: one payload for one tensor, whoever computes it, and how.

Every set of instructions, any number of threads and any slicing give the bytes that numpy gives for the whole
tensor. What is peculiar to the four-bit codes is in test_codecs_kernels_fourbit.py.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorbus.codecs.base import Accumulator, Encoded, Quantizer
from tensorbus.codecs.dtypes import DTYPES, DType
from tensorbus.codecs.kernels import forced, usable
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.codecs.registry import QUANTIZERS, quantizer
from tensorbus.codecs.values import all_finite, convert
from tensorbus.errors import NonFiniteValues
from tensorbus.streaming.container import ContainerEncoder
from tensorbus.streaming.sources import open_source

Array = npt.NDArray[np.generic]

CONFIGS: tuple[dict[str, object], ...] = (
    *({"name": name} for name in QUANTIZERS),
    *({"name": "int8", "blocksize": blocksize} for blocksize in (64, 256, 2048)),
    {"name": "nf4", "blocksize": 4096},
    *({"name": "lloyd", "bits": bits, "blocksize": 64} for bits in (1, 3, 4)),
    *({"name": "uniform", "step": step} for step in (0.02, 1.5)),
)
SOURCES = ("float32", "float64", "float16", "bfloat16")
EXACT = [name for name in QUANTIZERS if quantizer(name).exact]
LOSSY = [name for name in QUANTIZERS if not quantizer(name).exact]

# LoRA's factors, a scalar, nothing, odd ones, and some that end just around a block.
SHAPES: tuple[tuple[int, ...], ...] = ((1000, 80), (4096, 16), (), (0,), (1,), (63,), (4097,), (7, 4099))


ISAS = [isa for _, isa in usable() if isa is not None]
"""Instruction sets that this processor has."""


def originals(dtype: DType, values: npt.NDArray[np.floating]) -> Array:
    """The values as numpy holds them in ``dtype``; bfloat16 as its bits."""
    if dtype.name == "bfloat16":
        return (values.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    with np.errstate(over="ignore"):
        return values.astype(dtype.name)


def encode(codec: Quantizer, values: Array, dtype: DType, shift: int = 0) -> tuple[bytes, Encoded]:
    """The payload, of values that lie ``shift`` bytes behind an aligned address, and encode()'s report."""
    size = values.size * dtype.itemsize
    source = np.empty(size + shift, np.uint8)[shift:]
    source[:] = values.reshape(-1).view(np.uint8)
    out = memoryview(bytearray(codec.encoded_size(values.size, dtype)))
    encoded = codec.encode(source.data, dtype, out)
    return bytes(out[: encoded.nbytes]), encoded


def decode(codec: Quantizer, payload: bytes, dtype: DType, count: int, shift: int = 0) -> bytes:
    """The values, decoded to ``shift`` bytes behind an aligned address; what is around them stays."""
    size = count * dtype.itemsize
    out = np.full(size + shift + 64, 0xA5, np.uint8)
    codec.decode(memoryview(payload), dtype, out[shift : shift + size].data)
    assert (out[:shift] == 0xA5).all() and (out[shift + size :] == 0xA5).all()
    return out[shift : shift + size].tobytes()


def accumulate(codec: Quantizer, payload: bytes, dtype: DType, sums: Accumulator, weight: float) -> bytes:
    """The sums behind it."""
    sums = sums.copy()
    codec.accumulate(memoryview(payload), dtype, sums, weight)
    return sums.tobytes()


@settings(max_examples=250, deadline=None)
@given(
    config=st.sampled_from(CONFIGS),
    source=st.sampled_from(SOURCES),
    shape=st.one_of(st.sampled_from(SHAPES), st.tuples(st.integers(0, 9000))),
    spread=st.sampled_from([0.0, 1.0, 40.0]),
    scale=st.sampled_from([1.0, 1e-38, 1e-44, 3e37]),
    weight=st.floats(-1e3, 1e3),
    shift=st.integers(0, 7),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_instruction_set_gives_the_bits_of_numpy(
    config: dict[str, object],
    source: str,
    shape: tuple[int, ...],
    spread: float,
    scale: float,
    weight: float,
    shift: int,
    seed: int,
) -> None:
    """Payload, values and both kinds of sums: for any codec, shape, dtype, magnitude and address."""
    codec, dtype, rng = quantizer(config), DTYPES[source], np.random.default_rng(seed)
    if not codec.accepts(dtype):
        return
    # Clipped to what float32 and 16 bits hold; values of very different size stand side by side.
    numbers = np.asarray(rng.standard_normal(shape) * scale * np.exp(spread * (rng.random(shape) - 1)))
    limit = 6e4 if source == "float16" else 3.3e38
    values = originals(dtype, np.clip(numbers, -limit, limit))
    start = rng.standard_normal(values.size)
    sums = [cast(Accumulator, start.astype(kind)) for kind in (np.float32, np.float64)]
    with forced("numpy"), np.errstate(over="ignore"):
        payload = encode(codec, values, dtype)
        decoded = decode(codec, payload[0], dtype, values.size)
        totals = [accumulate(codec, payload[0], dtype, one, weight) for one in sums]
    for isa in ISAS:
        with forced("c", isa):
            assert encode(codec, values, dtype, shift) == payload, isa
            assert decode(codec, payload[0], dtype, values.size, shift) == decoded, isa
            assert [accumulate(codec, payload[0], dtype, one, weight) for one in sums] == totals, isa


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_threads_and_slices_change_nothing(config: dict[str, object], threads: int) -> None:
    """Slices have the same bytes when several threads encode them at once; they decode to the whole."""
    codec, dtype = quantizer(config), DTYPES["float32"]
    values = np.random.default_rng(1).standard_normal(32768 * 9 + 4096 * 3 + 777, np.float32)
    step = codec.blocksize * max(1, 32768 // codec.blocksize)
    slices = [values[at : at + step] for at in range(0, values.size, step)]
    alone = [encode(codec, one, dtype) for one in slices]
    whole = decode(codec, encode(codec, values, dtype)[0], dtype, values.size)

    def encoded(one: Array) -> tuple[bytes, Encoded]:
        return encode(codec, one, dtype)

    def decoded(one: Array, made: tuple[bytes, Encoded]) -> bytes:
        return decode(codec, made[0], dtype, one.size)

    with ThreadPoolExecutor(threads) as pool:
        for _ in range(2):
            assert list(pool.map(encoded, slices)) == alone
            assert b"".join(pool.map(decoded, slices, alone)) == whole


@pytest.mark.parametrize("isa", [None, *ISAS])
@pytest.mark.parametrize("name", ["none", "fp16", "bf16", "int8", "lloyd"])
def test_payloads_of_slices_are_those_of_the_whole(name: str, isa: str | None) -> None:
    """Codes of slices, one behind the other, are those of the tensor in one piece; so are their absmax."""
    codec, dtype = quantizer(name), DTYPES["float32"]
    values = np.random.default_rng(2).standard_normal(4096 * 21 + 777, np.float32)

    def fields(payload: bytes, count: int) -> tuple[bytes, bytes]:
        codes = count if name == "int8" else len(payload)
        return payload[:codes], payload[codes:]

    with forced("numpy" if isa is None else "c", isa):
        parts = [values[at : at + 8192] for at in range(0, values.size, 8192)]
        sliced = [fields(encode(codec, part, dtype)[0], part.size) for part in parts]
        whole = fields(encode(codec, values, dtype)[0], values.size)
    assert tuple(b"".join(column) for column in zip(*sliced, strict=True)) == whole


def every_exponent() -> npt.NDArray[np.float32]:
    """float32 numbers with every exponent, Inf and NaN among them, and awkward ends of the mantissa."""
    tops = np.arange(0x8000, dtype=np.uint32) << np.uint32(16)
    ends = np.array([0, 1, 0x0FFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    bits = (tops[:, None] | ends).reshape(-1)
    return np.concatenate([bits, bits | np.uint32(0x80000000)]).view(np.float32)


@pytest.mark.parametrize("to", SOURCES)
@pytest.mark.parametrize("source", SOURCES)
def test_conversions_are_those_of_numpy(source: str, to: str) -> None:
    """All dtypes to all, to the bit, on every instruction set; a NaN stays one, whatever its bits."""
    dtype, target, singles = DTYPES[source], DTYPES[to], every_exponent()
    if dtype.itemsize == 2:
        values: Array = np.arange(1 << 16, dtype=np.uint16)
    elif source == "float64":
        with np.errstate(invalid="ignore"):
            doubles = singles.astype(np.float64)
        near = [doubles, np.nextafter(doubles, np.inf), np.nextafter(doubles, -np.inf), doubles * 1e30]
        values = np.concatenate(near)
    else:
        values = singles
    raw = values.view(np.uint8)

    def converted() -> Array:
        out = np.empty(values.size * target.itemsize, np.uint8)
        convert(raw, dtype, out, target)
        # Which NaN comes out is up to the processor.
        typed = out.view(np.uint16 if to == "bfloat16" else to)
        nan = (typed & 0x7FFF) > 0x7F80 if to == "bfloat16" else np.isnan(typed)
        typed[nan] = 0x7FC0 if to == "bfloat16" else np.nan
        return out

    with forced("numpy"), np.errstate(all="ignore"):
        expected = converted()
    for isa in ISAS:
        with forced("c", isa):
            assert np.array_equal(converted(), expected), isa


@pytest.mark.parametrize("source", ["float32", "float64"])
@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_sixteen_bit_codecs_round_and_clip_as_numpy_does(name: str, source: str) -> None:
    """Every exponent, both neighbours of the end of the range, and what is far beyond; so are the counts."""
    codec, dtype, singles = quantizer(name), DTYPES[source], every_exponent()
    finite = singles[np.isfinite(singles)].astype(source)
    ends = np.array([65504, -65504, 65519.9, 65520, (2 - 2**-7) * 2.0**127], source)
    far = [np.array([1e300, -1e300], source)] if source == "float64" else []
    around = [ends, np.nextafter(ends, np.array(np.inf, source)), np.nextafter(ends, np.array(0, source))]
    values = np.concatenate([finite, *around, *far])
    with forced("numpy"):
        # numpy clips piece by piece, and so do the kernels: those without anything to clip go another way.
        expected = [encode(codec, values, dtype), encode(codec, np.abs(values[:4000]), dtype)]
    assert expected[0][1].clipped > 0
    for isa in ISAS:
        with forced("c", isa):
            assert [encode(codec, values, dtype), encode(codec, np.abs(values[:4000]), dtype)] == expected


@pytest.mark.parametrize("isa", [None, *ISAS])
@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("source", SOURCES)
def test_exact_codecs_pass_nan_and_inf_bit_for_bit(source: str, name: str, isa: str | None) -> None:
    """NaN, quiet and signalling and whatever it carries, Inf and -0.0 come back with all their bits."""
    codec, dtype = quantizer(name), DTYPES[source]
    singles = every_exponent()
    special = np.concatenate([singles[-4096:], singles[:4096], np.array([-0.0, np.inf], np.float32)])
    data = special.tobytes() + np.random.default_rng(3).bytes(50_000 * dtype.itemsize)
    bits = np.frombuffer(data, f"u{dtype.itemsize}")
    with forced("numpy" if isa is None else "c", isa):
        payload, _ = encode(codec, bits, dtype)
        assert decode(codec, payload, dtype, bits.size) == data


@pytest.mark.parametrize("isa", [None, *ISAS])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", LOSSY)
def test_what_is_not_finite_is_refused_by_name(name: str, bad: float, isa: str | None) -> None:
    """A quantising codec refuses a tensor with NaN or Inf, in a whole block or in its tail, and names it."""
    for at in (5, 4099):
        values = np.ones(4100, np.float32)
        values[at] = bad
        container = {"fine": np.ones(64, np.float32), "layer.weight": values}
        with forced("numpy" if isa is None else "c", isa):
            encoder = ContainerEncoder(open_source(container), Pipeline.parse(name), {})
            with pytest.raises(NonFiniteValues, match=r"'layer\.weight'"):
                list(encoder.frames(lambda: memoryview(bytearray(1 << 20))))


@pytest.mark.parametrize("isa", [None, *ISAS])
def test_sums_beyond_their_range_are_noticed(isa: str | None) -> None:
    """One NaN or Inf anywhere among the sums is seen; the largest numbers are not taken for it."""
    with forced("numpy" if isa is None else "c", isa):
        for kind in (np.float32, np.float64):
            for count in (0, 1, 100, 5000):
                assert all_finite(cast(Accumulator, np.full(count, -np.finfo(kind).max, kind)))
                for at in range(0, count, 99):
                    sums = cast(Accumulator, np.zeros(count, kind))
                    sums[at] = (np.nan, np.inf, -np.inf)[at % 3]
                    assert not all_finite(sums)
