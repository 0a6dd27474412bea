"""Promises of the four-bit kernels: every instruction set gives the bytes of numpy, to the bit.

That numpy and the kernels give the bytes of bitsandbytes is in test_codecs_bitsandbytes.py.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorbus.codecs.base import Accumulator
from tensorbus.codecs.dtypes import DTYPES, DType
from tensorbus.codecs.kernels import forced, usable
from tensorbus.codecs.quantizers.fourbit import BLOCKSIZES
from tensorbus.codecs.quantizers.fp4 import LEVELS as FP4_LEVELS
from tensorbus.codecs.quantizers.nf4 import LEVELS as NF4_LEVELS
from tensorbus.codecs.registry import quantizer
from tensorbus.errors import NonFiniteValues

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float32]

LEVELS = {"nf4": np.array(NF4_LEVELS, np.float32), "fp4": np.array(FP4_LEVELS, np.float32)}
NAMES = ("nf4", "fp4", "nf4-dq")
SOURCES = ("float32", "float64", "float16", "bfloat16")
SHAPES: tuple[tuple[int, ...], ...] = ((1000, 80), (4096, 16), (), (0,), (1,), (63,), (65, 3), (7, 4099))
FLOAT32 = DTYPES["float32"]


ISAS = [isa for _, isa in usable() if isa is not None]
"""Instruction sets that this processor has."""


def originals(dtype: DType, values: npt.NDArray[np.floating]) -> Array:
    """The values as numpy holds them in ``dtype``; bfloat16 as its bits."""
    if dtype.name == "bfloat16":
        return (values.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    with np.errstate(over="ignore"):
        return values.astype(dtype.name)


def config(name: str, blocksize: int) -> dict[str, object]:
    """Of the codec; nf4-dq has one block size."""
    return {"name": name} if name == "nf4-dq" else {"name": name, "blocksize": blocksize}


def encode(of: dict[str, object], values: Array, dtype: DType, shift: int = 0) -> bytes:
    """The payload, of values that lie ``shift`` bytes behind an aligned address."""
    codec, size = quantizer(of), values.size * dtype.itemsize
    source = np.empty(size + shift, np.uint8)[shift:]
    source[:] = values.reshape(-1).view(np.uint8)
    out = bytearray(codec.encoded_size(values.size, dtype))
    codec.encode(source.data, dtype, memoryview(out))
    return bytes(out)


def decode(of: dict[str, object], payload: bytes, dtype: DType, count: int, shift: int = 0) -> bytes:
    """The values, decoded to ``shift`` bytes behind an aligned address; what is around them stays."""
    size = count * dtype.itemsize
    out = np.full(size + shift + 64, 0xA5, np.uint8)
    quantizer(of).decode(memoryview(payload), dtype, out[shift : shift + size].data)
    assert (out[:shift] == 0xA5).all() and (out[shift + size :] == 0xA5).all()
    return out[shift : shift + size].tobytes()


def accumulate(
    of: dict[str, object], payload: bytes, dtype: DType, sums: Accumulator, weight: float
) -> bytes:
    """The sums behind it."""
    sums = sums.copy()
    with np.errstate(over="ignore"):
        quantizer(of).accumulate(memoryview(payload), dtype, sums, weight)
    return sums.tobytes()


@settings(max_examples=120, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    blocksize=st.sampled_from(BLOCKSIZES),
    source=st.sampled_from(SOURCES),
    shape=st.one_of(st.sampled_from(SHAPES), st.tuples(st.integers(0, 9000))),
    spread=st.sampled_from([0.0, 1.0, 40.0]),
    scale=st.sampled_from([1.0, 1e-38, 1e-44, 3e37]),
    weight=st.floats(-1e3, 1e3),
    shift=st.integers(0, 7),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_instruction_set_gives_the_bits_of_numpy(
    name: str,
    blocksize: int,
    source: str,
    shape: tuple[int, ...],
    spread: float,
    scale: float,
    weight: float,
    shift: int,
    seed: int,
) -> None:
    """Payload, values and both kinds of sums: for any shape, dtype, magnitude and address."""
    dtype, of, rng = DTYPES[source], config(name, blocksize), np.random.default_rng(seed)
    # Clipped to what float32 and 16 bits hold; values of very different size stand side by side.
    numbers = rng.standard_normal(shape) * scale * np.exp(spread * (rng.random(shape) - 1))
    limit = 6e4 if source == "float16" else 3.3e38
    values = originals(dtype, np.clip(np.asarray(numbers), -limit, limit))
    start = rng.standard_normal(values.size)
    sums = [cast(Accumulator, start.astype(kind)) for kind in (np.float32, np.float64)]
    with forced("numpy"):
        payload = encode(of, values, dtype)
        decoded = decode(of, payload, dtype, values.size)
        totals = [accumulate(of, payload, dtype, one, weight) for one in sums]
    for isa in ISAS:
        with forced("c", isa):
            assert encode(of, values, dtype, shift) == payload, isa
            assert decode(of, payload, dtype, values.size, shift) == decoded, isa
            assert [accumulate(of, payload, dtype, one, weight) for one in sums] == totals, isa


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_values_around_midpoints_get_the_code_of_numpy(name: str, isa: str) -> None:
    """Three float32 to either side of each midpoint times absmax, for 2000 absmax of every magnitude."""
    ranked = np.sort(LEVELS[name])
    midpoints = np.concatenate(
        [(ranked[:-1] + ranked[1:]) / np.float32(2), np.array([0, 1e-7, 1, -1], np.float32)]
    )
    rng = np.random.default_rng(10)
    absmax = (rng.uniform(1, 2, 2000) * 2.0 ** rng.integers(-149, 127, 2000)).astype(np.float32)
    near = (midpoints * absmax[:, None]).view(np.int32)[:, :, None] + np.arange(-3, 4, dtype=np.int32)
    values = near.reshape(2000, -1).view(np.float32)
    values = np.clip(np.nan_to_num(values), -absmax[:, None], absmax[:, None])
    blocks = np.zeros((2000, 256), np.float32)
    blocks[:, : values.shape[1]] = values
    blocks[:, -1] = absmax
    with forced("numpy"):
        expected = encode(config(name, 256), blocks, FLOAT32)
    with forced("c", isa):
        assert encode(config(name, 256), blocks, FLOAT32) == expected


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_every_code_decodes_to_its_level(name: str, isa: str) -> None:
    """All bytes, as codes with any absmax, decode to level times absmax in float32."""
    codes = np.tile(np.arange(256, dtype=np.uint8), 8)
    absmax = np.array([1, 0, -2.5, 1e-45, 3.4e38, np.inf, -0.0, 0.1] * 8, np.float32)
    levels = LEVELS[name][np.stack([codes >> 4, codes & 15], axis=1).reshape(-1)]
    with np.errstate(invalid="ignore"):
        expected = levels.reshape(64, 64) * absmax[:, None]
    with forced("c", isa):
        decoded = decode(config(name, 64), codes.tobytes() + absmax.tobytes(), FLOAT32, 4096)
    np.testing.assert_array_equal(np.frombuffer(decoded, np.float32).reshape(64, 64), expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shift", [0, 4, 16, 17])
@pytest.mark.parametrize("name", NAMES)
def test_slices_too_large_for_the_cache_decode_alike(name: str, shift: int, isa: str) -> None:
    """Outputs above 4 MiB, which are written past the caches, and a tail; wherever they begin."""
    count = (1 << 20) + 64 * 5 + 13
    of, values = config(name, 64), np.random.default_rng(11).standard_normal(count, np.float32)
    payload = encode(of, values, FLOAT32)
    with forced("numpy"):
        expected = decode(of, payload, FLOAT32, count)
    with forced("c", isa):
        assert decode(of, payload, FLOAT32, count, shift) == expected


@pytest.mark.parametrize("isa", [None, *ISAS])
@pytest.mark.parametrize("name", NAMES)
def test_slices_have_the_bytes_of_the_whole(name: str, isa: str | None) -> None:
    """Codes and absmax of the slices, one behind the other, are those of the tensor in one piece."""
    with forced("numpy" if isa is None else "c", isa):
        codec = quantizer(name)
        values = np.random.default_rng(12).standard_normal(16384 * 7 + 777, np.float32)
        whole = encode(config(name, 64), values, FLOAT32)
        halves: list[list[bytes]] = []
        for start in range(0, values.size, 2 * codec.blocksize):
            part = values[start : start + 2 * codec.blocksize]
            payload, codes = encode(config(name, 64), part, FLOAT32), (part.size + 1) // 2
            halves.append([payload[:codes], *fields(name, payload[codes:], -(-part.size // 64))])
    codes = (values.size + 1) // 2
    expected = [whole[:codes], *fields(name, whole[codes:], -(-values.size // 64))]
    assert [b"".join(column) for column in zip(*halves, strict=True)] == expected


def fields(name: str, stored: bytes, blocks: int) -> list[bytes]:
    """What stands behind the codes: absmax, or of nf4-dq means, scales and codes."""
    if name != "nf4-dq":
        return [stored]
    groups = -(-blocks // 256)
    return [stored[: 4 * groups], stored[4 * groups : 8 * groups], stored[8 * groups :]]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 4095, 4096, 8200])
def test_nan_and_inf_are_refused(source: str, bad: float, at: int, isa: str) -> None:
    """In whole blocks and in the tail, by every instruction set."""
    dtype = DTYPES[source]
    numbers = np.random.default_rng(13).standard_normal(8201)
    numbers[at] = bad
    for name in NAMES:
        with forced("c", isa), pytest.raises(NonFiniteValues):
            encode(config(name, 64), originals(dtype, numbers), dtype)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_payloads_that_decode_to_inf_are_refused(kind: type[np.generic], isa: str) -> None:
    """An absmax of Inf or NaN, or one that takes a value beyond float16; not one that takes none there."""
    sums = cast(Accumulator, np.zeros(128, kind))
    largest, half = bytes([0xFF] * 32), bytes([0x88] * 32)  # codes of 1 and of 0.0796, in nf4
    cases: list[tuple[bytes, float, str, bool]] = [
        (half, np.inf, "float32", False),
        (half, np.nan, "float64", False),
        (largest, 1e5, "float16", False),
        (half, 1e5, "float16", True),
        (largest, 1e5, "bfloat16", True),
        (largest, 3.4e38, "bfloat16", False),
        (largest, 3.4e38, "float32", True),
    ]
    for codes, absmax, source, fine in cases:
        payload = half + codes + np.array([1, absmax], np.float32).tobytes()
        with forced("c", isa):
            if fine:
                accumulate(config("nf4", 64), payload, DTYPES[source], sums, 1.0)
            else:
                with pytest.raises(NonFiniteValues):
                    accumulate(config("nf4", 64), payload, DTYPES[source], sums, 1.0)


@pytest.mark.parametrize("isa", ISAS)
def test_quantised_absmax_are_those_of_numpy_for_groups_of_every_size(isa: str) -> None:
    """Means are summed in one order: the bytes agree for 1 to 520 blocks of very different magnitude."""
    rng = np.random.default_rng(14)
    for blocks in (*range(1, 40), *range(40, 521, 7), 255, 256, 257, 511, 512, 513):
        values = rng.standard_normal((blocks, 64)) * np.exp(rng.uniform(-40, 40, (blocks, 1)))
        values = values.astype(np.float32)
        with forced("numpy"):
            payload = encode(config("nf4-dq", 64), values, FLOAT32)
            decoded = decode(config("nf4-dq", 64), payload, FLOAT32, values.size)
        with forced("c", isa):
            assert encode(config("nf4-dq", 64), values, FLOAT32) == payload
            assert decode(config("nf4-dq", 64), payload, FLOAT32, values.size) == decoded


@pytest.mark.parametrize("isa", ISAS)
def test_any_payload_of_the_right_size_decodes_to_what_numpy_gives(isa: str) -> None:
    """Random bytes, with every NaN and Inf among the absmax, means and scales, are safe and mean the same."""
    rng = np.random.default_rng(15)
    for name in NAMES:
        for count in (1, 777, 16384 * 2 + 65):
            payload = rng.bytes(quantizer(name).encoded_size(count, FLOAT32))
            with forced("numpy"):
                expected = np.frombuffer(decode(config(name, 64), payload, FLOAT32, count), np.float32)
            with forced("c", isa):
                decoded = np.frombuffer(decode(config(name, 64), payload, FLOAT32, count), np.float32)
            np.testing.assert_array_equal(decoded, expected)
