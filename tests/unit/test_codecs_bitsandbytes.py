"""Promises about bitsandbytes: its codes, absmax and values are ours, to the bit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy

from tensorbus.codecs.dtypes import DTYPES
from tensorbus.codecs.quantizers.dynamic import DYNAMIC, dynamic_map
from tensorbus.codecs.quantizers.fp4 import LEVELS as FP4_LEVELS
from tensorbus.codecs.quantizers.nf4 import LEVELS as NF4_LEVELS
from tensorbus.codecs.registry import quantizer

torch = pytest.importorskip("torch")
functional = pytest.importorskip("bitsandbytes.functional")

Floats = npt.NDArray[np.float32]
LEVELS = {"nf4": np.array(NF4_LEVELS, np.float32), "fp4": np.array(FP4_LEVELS, np.float32)}
FOUR_BIT = ("nf4", "fp4")
FLOAT32 = DTYPES["float32"]


def encode(name: str, blocksize: int, values: Floats) -> bytes:
    """Our payload."""
    codec = quantizer({"name": name, "blocksize": blocksize})
    out = bytearray(codec.encoded_size(values.size, FLOAT32))
    codec.encode(values.view(np.uint8).data, FLOAT32, memoryview(out))
    return bytes(out)


def decode(name: str, blocksize: int, payload: bytes, count: int, dtype: str = "float32") -> bytes:
    """Our values, as bytes."""
    out = bytearray(count * DTYPES[dtype].itemsize)
    quantizer({"name": name, "blocksize": blocksize}).decode(
        memoryview(payload), DTYPES[dtype], memoryview(out)
    )
    return bytes(out)


def their_4bit(name: str, blocksize: int, values: Floats) -> bytes:
    """The codes and absmax of bitsandbytes, one behind the other."""
    codes, state = functional.quantize_4bit(torch.from_numpy(values), blocksize=blocksize, quant_type=name)
    return codes.numpy().tobytes() + state.absmax.numpy().tobytes()


def around_midpoints(name: str) -> Floats:
    """Every midpoint, its two neighbours, and what is next to 0; a 1 after each 31, so that absmax is 1."""
    ranked = np.sort(LEVELS[name])
    midpoints = (ranked[:-1] + ranked[1:]) / np.float32(2)
    tiny = np.array([0, -0.0, 1e-45, -1e-45, 1e-39, -1e-39], np.float32)
    up, down = np.nextafter(midpoints, np.float32(2)), np.nextafter(midpoints, np.float32(-2))
    values = np.concatenate([midpoints, up, down, tiny])
    return np.concatenate(
        [np.append(values[at : at + 31], np.float32(1)) for at in range(0, values.size, 31)]
    )


@pytest.mark.parametrize("name", FOUR_BIT)
def test_four_bit_levels_are_theirs(name: str) -> None:
    """The sixteen levels, in the order of the codes, are those of bitsandbytes."""
    assert np.array_equal(LEVELS[name], functional.get_4bit_type(name, device="cpu").numpy())


@pytest.mark.parametrize("name", FOUR_BIT)
@pytest.mark.parametrize("blocksize", [32, 64, 128, 256, 512, 1024, 2048, 4096])
@pytest.mark.parametrize("scale", [1, 3.7, 1e-38, 1e-40, 1e38])
def test_four_bit_ties_and_extremes_are_theirs(name: str, blocksize: int, scale: float) -> None:
    """Values on a midpoint and one ulp beside it, zeros, denormals and huge numbers get their codes."""
    values = (around_midpoints(name) * np.float32(scale)).astype(np.float32)
    assert encode(name, blocksize, values) == their_4bit(name, blocksize, values)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(FOUR_BIT),
    blocksize=st.sampled_from([32, 64, 4096]),
    values=hypothesis_numpy.arrays(
        np.float32, st.integers(1, 300), elements=st.floats(allow_nan=False, allow_infinity=False, width=32)
    ),
)
@example(name="nf4", blocksize=64, values=np.zeros(65, np.float32))
@example(name="fp4", blocksize=64, values=np.zeros(1, np.float32))
def test_four_bit_codes_are_theirs_for_any_values(name: str, blocksize: int, values: Floats) -> None:
    """Odd lengths, tails and whatever numbers: the payload is the codes and absmax of bitsandbytes."""
    assert encode(name, blocksize, values) == their_4bit(name, blocksize, values)


@pytest.mark.parametrize("name", FOUR_BIT)
@pytest.mark.parametrize("count", [65536 * 3 + 64 * 5 + 17, 100_000])
def test_four_bit_codes_are_theirs_across_pieces(name: str, count: int) -> None:
    """The same where the work is done in several pieces."""
    values = np.random.default_rng(count).standard_normal(count, np.float32)
    assert encode(name, 64, values) == their_4bit(name, 64, values)


@pytest.mark.parametrize("name", FOUR_BIT)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_four_bit_values_are_theirs(name: str, dtype: str) -> None:
    """Decoding gives the bits of bitsandbytes' own decoding, rounded alike in 16 bits."""
    values = np.random.default_rng(1).standard_normal(64 * 2000, np.float32) * np.float32(3)
    codes, state = functional.quantize_4bit(
        torch.from_numpy(values).to(getattr(torch, dtype)), blocksize=64, quant_type=name
    )
    theirs = functional.dequantize_4bit(codes, state).reshape(-1).view(torch.uint8).numpy().tobytes()
    payload = codes.numpy().tobytes() + state.absmax.numpy().tobytes()
    assert decode(name, 64, payload, values.size, dtype) == theirs


@pytest.mark.parametrize("name", FOUR_BIT)
@pytest.mark.parametrize("count", [1, 31, 65, 4097])
def test_four_bit_tails_decode_by_the_same_formula(name: str, count: int) -> None:
    """A tail decodes to level times absmax in float32, as every block does."""
    values = np.random.default_rng(count).standard_normal(count, np.float32)
    payload = np.frombuffer(encode(name, 64, values), np.uint8)
    packed, absmax = np.split(payload, [(count + 1) // 2])
    codes = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)[:count]
    expected = LEVELS[name][codes] * np.repeat(absmax.view(np.float32), 64)[:count]
    assert decode(name, 64, payload.tobytes(), count) == expected.tobytes()


@pytest.mark.parametrize(
    ("name", "error", "deviation"), [("nf4", 0.072798, 7.4e-5), ("fp4", 0.096543, 1.11e-4)]
)
def test_four_bit_error_is_the_published_one(name: str, error: float, deviation: float) -> None:
    """The mean absolute error on normal values is what bitsandbytes documents for blocks of 64."""
    values = np.random.default_rng(2).standard_normal(1024 * 1024, np.float32)
    decoded = np.frombuffer(decode(name, 64, encode(name, 64, values), values.size), np.float32)
    assert abs(float(np.abs(values - decoded).mean()) - error) < 5 * deviation


def test_dynamic_map_is_theirs() -> None:
    """The 256 levels of int8 are those of create_dynamic_map."""
    assert np.array_equal(dynamic_map(), functional.create_dynamic_map().numpy())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("count", "blocksize"), [(4096 * 5, 4096), (4096 * 3 + 17, 4096), (1000, 64)])
def test_int8_decodes_what_they_encoded(dtype: str, count: int, blocksize: int) -> None:
    """The int8 output of bitsandbytes decodes to what bitsandbytes decodes it to."""
    values = torch.from_numpy(np.random.default_rng(3).standard_normal(count, np.float32)).to(
        getattr(torch, dtype)
    )
    codes, state = functional.quantize_blockwise(values, blocksize=blocksize)
    theirs = functional.dequantize_blockwise(codes, state).view(torch.uint8).numpy().tobytes()
    payload = codes.numpy().tobytes() + state.absmax.numpy().tobytes()
    assert decode("int8", blocksize, payload, count, dtype) == theirs


def test_they_decode_what_int8_encoded() -> None:
    """Our int8 payload is in their layout: bitsandbytes decodes it to our values, and nearer than its own."""
    values = np.random.default_rng(4).standard_normal(4096 * 7 + 99, np.float32)
    payload = encode("int8", 4096, values)
    codes, state = functional.quantize_blockwise(torch.from_numpy(values), blocksize=4096)
    own = functional.dequantize_blockwise(codes, state).numpy()
    ours = np.frombuffer(payload, np.uint8)
    state.absmax = torch.from_numpy(ours[values.size :].view(np.float32).copy())
    decoded = functional.dequantize_blockwise(torch.from_numpy(ours[: values.size].copy()), state).numpy()
    assert decoded.tobytes() == decode("int8", 4096, payload, values.size)
    assert np.abs(values - decoded).sum() < np.abs(values - own).sum()


def test_int8_takes_the_nearest_level() -> None:
    """The code is that of the nearest level, at every midpoint and its neighbours too; ties go down."""
    levels = dynamic_map()
    midpoints = (levels[:-1] + levels[1:]) / np.float32(2)
    around = [
        midpoints,
        np.nextafter(midpoints, np.float32(2)),
        np.nextafter(midpoints, np.float32(-2)),
        levels,
    ]
    rng = np.random.default_rng(5)
    spread = rng.uniform(-1, 1, 20_000) * 10.0 ** rng.uniform(-9, 0, 20_000)
    values = np.concatenate([*around, [0, -0.0, 1e-45, -1e-45, 1.0000001, -1.0000001], spread]).astype(
        np.float32
    )
    codes = np.empty(values.size, np.uint8)
    DYNAMIC.encode(values, codes)
    assert np.array_equal(codes, np.searchsorted(midpoints, values, side="left"))


def test_int8_keeps_zeros() -> None:
    """A zero comes back as zero, whatever else is in its block; with bitsandbytes it is 2e-5 of absmax."""
    values = np.random.default_rng(6).standard_normal(10_000, np.float32)
    values[::3] = 0
    decoded = np.frombuffer(decode("int8", 4096, encode("int8", 4096, values), values.size), np.float32)
    assert not decoded[::3].any()
