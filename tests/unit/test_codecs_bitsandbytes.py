"""Promises about bitsandbytes: its codes, absmax and values are ours, to the bit, whatever our kernels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy

from tensorbus.codecs.dtypes import DTYPES
from tensorbus.codecs.kernels import forced, usable
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


@pytest.fixture(params=usable(), ids=str, autouse=True, scope="module")
def kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test runs with each of them."""
    with forced(*request.param):
        yield


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


def they_decode(name: str, blocksize: int, payload: bytes, count: int) -> bytes:
    """What plain bitsandbytes makes of our payload: given flat, and filled up to whole blocks.

    On AVX-512 it takes the wrong absmax where the last dimension is no multiple of the block size.
    """
    blocks, nbytes = -(-count // blocksize), (count + 1) // 2
    codes = torch.zeros(blocks * blocksize // 2, dtype=torch.uint8)
    codes[:nbytes] = torch.frombuffer(bytearray(payload[:nbytes]), dtype=torch.uint8)
    state = functional.QuantState(
        absmax=torch.frombuffer(bytearray(payload[nbytes:]), dtype=torch.float32),
        shape=torch.Size([blocks * blocksize]),
        code=functional.get_4bit_type(name, device="cpu"),
        blocksize=blocksize,
        quant_type=name,
        dtype=torch.float32,
    )
    # It answers with a row.
    return functional.dequantize_4bit(codes[:, None], state).reshape(-1)[:count].numpy().tobytes()


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
@pytest.mark.parametrize("blocksize", [32, 64, 4096])
@pytest.mark.parametrize("shape", [(1000, 80), (4096, 16), (33, 31), (1,), ()])
def test_they_decode_what_four_bits_encoded(name: str, blocksize: int, shape: tuple[int, ...]) -> None:
    """Our payload is in their layout: plain bitsandbytes decodes it to our values, LoRA's shapes and all."""
    values = np.random.default_rng(20).standard_normal(int(np.prod(shape)), np.float32)
    payload = encode(name, blocksize, values)
    assert they_decode(name, blocksize, payload, values.size) == decode(name, blocksize, payload, values.size)


@pytest.mark.parametrize("name", FOUR_BIT)
def test_four_bit_codes_are_theirs_next_to_midpoints_of_any_absmax(name: str) -> None:
    """Two float32 to either side of each midpoint times absmax, for 1000 absmax of every magnitude."""
    ranked = np.sort(LEVELS[name])
    rng = np.random.default_rng(21)
    absmax = (rng.uniform(1, 2, (1000, 1)) * 2.0 ** rng.integers(-149, 127, (1000, 1))).astype(np.float32)
    near = ((ranked[:-1] + ranked[1:]) / np.float32(2) * absmax).view(np.int32)
    beside = [(near + step).view(np.float32) for step in (-2, -1, 0, 1, 2)]
    blocks = np.zeros((1000, 128), np.float32)
    blocks[:, :75] = np.clip(np.nan_to_num(np.concatenate(beside, axis=1)), -absmax, absmax)
    blocks[:, 127:] = absmax
    values = blocks.reshape(-1)
    assert encode(name, 128, values) == their_4bit(name, 128, values)


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
@pytest.mark.parametrize("seed", range(5))
def test_four_bit_error_is_the_published_one(name: str, error: float, deviation: float, seed: int) -> None:
    """The mean absolute error on normal values is what bitsandbytes documents for blocks of 64."""
    values = np.random.default_rng(seed).standard_normal(1024 * 1024, np.float32)
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


@settings(max_examples=60, deadline=None)
@given(
    blocksize=st.sampled_from([64, 256, 4096]),
    values=hypothesis_numpy.arrays(
        np.float32,
        st.integers(1, 300),
        elements=st.floats(-(2.0**100), 2.0**100, allow_subnormal=False, width=32),
    ),
)
@example(blocksize=64, values=np.zeros(65, np.float32))
@example(blocksize=256, values=np.random.default_rng(7).standard_normal(256 * 900 + 1, np.float32))
def test_int8_differs_from_theirs_only_where_they_miss_the_nearest(blocksize: int, values: Floats) -> None:
    """absmax are theirs to the bit; where a code is not, its level is as near to the value or nearer."""
    theirs, state = functional.quantize_blockwise(torch.from_numpy(values), blocksize=blocksize)
    payload = np.frombuffer(encode("int8", blocksize, values), np.uint8)
    codes, absmax = payload[: values.size], payload[values.size :].view(np.float32)
    # Of a tail, ours is stored as it is used, theirs as it was found; that matters to zeros alone.
    smallest = np.float32(1e-38)
    assert np.array_equal(np.maximum(absmax, smallest), np.maximum(state.absmax.numpy(), smallest))
    scaled = values / np.maximum(np.repeat(absmax, blocksize)[: values.size], smallest)
    ours, others = (dynamic_map().astype(np.float64)[one] for one in (codes, theirs.numpy().reshape(-1)))
    # Both sides round the scaled value to float32, so half an ulp decides nothing.
    assert (np.abs(ours - scaled) <= np.abs(others - scaled) + 2**-24).all()


@pytest.mark.parametrize("blocksize", [64, 128, 256, 512, 1024, 2048, 4096])
@pytest.mark.parametrize(("uniform", "absolute", "relative"), [(False, 0.011, 0.018), (True, 0.0036, 0.015)])
def test_int8_error_is_within_their_bounds(
    blocksize: int, uniform: bool, absolute: float, relative: float
) -> None:
    """Mean errors on normal and on even values stay below what the tests of bitsandbytes demand of it."""
    rng = np.random.default_rng(8)
    values = rng.random(1 << 20, np.float32) if uniform else rng.standard_normal(1 << 20, np.float32)
    decoded = np.frombuffer(
        decode("int8", blocksize, encode("int8", blocksize, values), values.size), np.float32
    )
    error = np.abs(values - decoded)
    assert error.mean() < absolute
    assert (error / (np.abs(values) + 1e-8)).mean() < relative


@pytest.mark.parametrize("shape", [(1000, 80), (4096, 16), (7, 33)])
@pytest.mark.parametrize("blocksize", [64, 4096])
def test_int8_of_matrices_decodes_in_plain_bitsandbytes(shape: tuple[int, int], blocksize: int) -> None:
    """Our codes and absmax in a QuantState made by hand decode there to our values, in the tensor's shape."""
    values = np.random.default_rng(9).standard_normal(shape, np.float32)
    payload = encode("int8", blocksize, values.reshape(-1))
    codes = np.frombuffer(payload, np.uint8, values.size).reshape(shape)
    state = functional.QuantState(
        absmax=torch.from_numpy(np.frombuffer(payload, np.float32, offset=values.size).copy()),
        code=functional.create_dynamic_map(),
        blocksize=blocksize,
        dtype=torch.float32,
    )
    theirs = functional.dequantize_blockwise(torch.from_numpy(codes.copy()), state)
    assert theirs.shape == shape
    assert theirs.numpy().tobytes() == decode("int8", blocksize, payload, values.size)


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
