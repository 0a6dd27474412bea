"""Promises of the 8-bit dynamic map's kernels: the levels of Python, and the nearest of them to the last bit.

That whole tensors have the bytes of numpy is in test_codecs_exactness.py.
"""

from __future__ import annotations

from ctypes import c_int64, c_void_p

import numpy as np
import numpy.typing as npt
import pytest

from tensorbus.codecs.dtypes import DTYPES
from tensorbus.codecs.kernels import forced, native, pointer, usable
from tensorbus.codecs.quantizers.dynamic import dynamic_map
from tensorbus.codecs.registry import quantizer
from tensorbus.errors import NonFiniteValues

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

LEVELS = dynamic_map()
MIDPOINTS = (LEVELS[:-1] + LEVELS[1:]) / np.float32(2)
FLOAT32 = DTYPES["float32"]


ISAS = [isa for _, isa in usable() if isa is not None]
"""Instruction sets that this processor has."""


def codes_of(values: Floats, blocksize: int) -> Bytes:
    """The codes of whole blocks."""
    codec = quantizer({"name": "int8", "blocksize": blocksize})
    out = np.empty(codec.encoded_size(values.size, FLOAT32), np.uint8)
    codec.encode(values.view(np.uint8).data, FLOAT32, out.data)
    return out[: values.size]


def test_the_levels_in_c_are_those_of_python() -> None:
    """The library computes the same 256 levels for itself."""
    with forced("c"):
        library = native()
        assert library is not None
        levels = np.empty(256, np.float32)
        library.tb_dynamic_levels.argtypes = [c_void_p]
        library.tb_dynamic_levels.restype = c_int64
        library.tb_dynamic_levels(pointer(levels))
    assert levels.tobytes() == LEVELS.tobytes()


@pytest.mark.parametrize("isa", [None, *ISAS])
def test_values_about_midpoints_get_the_nearest_level(isa: str | None) -> None:
    """A midpoint goes down, what is above goes up: 8 ulp to either side, and numbers of every exponent."""
    bits = MIDPOINTS.view(np.int32)[:, None] + np.arange(-8, 9, dtype=np.int32)
    exponents = (np.arange(1 << 16, dtype=np.uint32) << np.uint32(16) | np.uint32(0x5A5A)).view(np.float32)
    zeros = np.array([0, -0.0, 1e-45, -1e-45], np.float32)
    values = np.concatenate(
        [bits.reshape(-1).view(np.float32), LEVELS, zeros, exponents[np.abs(exponents) <= 1]]
    )
    # A 1 at the end of each block, so that absmax is 1 and nothing is scaled.
    values = np.concatenate([values, np.zeros(-values.size % 63, np.float32)]).reshape(-1, 63)
    blocks = np.pad(values, ((0, 0), (0, 1)), constant_values=1)
    with forced("numpy" if isa is None else "c", isa):
        codes = codes_of(blocks.reshape(-1), 64)
    assert np.array_equal(codes, np.searchsorted(MIDPOINTS, blocks.reshape(-1), side="left"))


@pytest.mark.parametrize("isa", ISAS)
def test_midpoints_times_absmax_get_the_code_of_numpy(isa: str) -> None:
    """2 ulp to either side of each midpoint times an absmax, for 300 absmax of every magnitude."""
    rng = np.random.default_rng(1)
    absmax = (rng.uniform(1, 2, 300) * 2.0 ** rng.integers(-149, 127, 300)).astype(np.float32)
    near = (MIDPOINTS * absmax[:, None]).view(np.int32)[:, :, None] + np.arange(-2, 3, dtype=np.int32)
    blocks = np.zeros((300, 2048), np.float32)
    blocks[:, : 255 * 5] = np.nan_to_num(near.reshape(300, -1).view(np.float32))
    blocks = np.clip(blocks, -absmax[:, None], absmax[:, None])
    blocks[:, -1] = absmax
    with forced("numpy"):
        expected = codes_of(blocks.reshape(-1), 2048)
    with forced("c", isa):
        assert np.array_equal(codes_of(blocks.reshape(-1), 2048), expected)


@pytest.mark.parametrize("isa", [None, *ISAS])
def test_every_code_decodes_to_its_level(isa: str | None) -> None:
    """All 256 codes with any absmax, NaN and Inf too, decode to level times absmax in float32."""
    codes = np.tile(np.arange(256, dtype=np.uint8), 8)
    absmax = np.array([1, 0, -2.5, 1e-45, 3.4e38, np.inf, -0.0, np.nan], np.float32)
    with np.errstate(invalid="ignore"):
        expected = LEVELS * absmax[:, None]
    values = np.empty((8, 256), np.float32)
    with forced("numpy" if isa is None else "c", isa):
        codec = quantizer({"name": "int8", "blocksize": 256})
        codec.decode(
            memoryview(codes.tobytes() + absmax.tobytes()), FLOAT32, values.reshape(-1).view(np.uint8).data
        )
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shift", [0, 4, 16, 17])
@pytest.mark.parametrize("blocksize", [64, 4096])
def test_slices_too_large_for_the_cache_decode_alike(blocksize: int, shift: int, isa: str) -> None:
    """Outputs above 4 MiB, which are written past the caches, end where they should, wherever they begin."""
    codec = quantizer({"name": "int8", "blocksize": blocksize})
    for tail in (1, 13, 63, 4095):
        count = (1 << 20) + 4096 + tail
        payload = (
            np.random.default_rng(2).bytes(count) + np.ones(-(-count // blocksize), np.float32).tobytes()
        )
        expected = LEVELS[np.frombuffer(payload, np.uint8, count)]
        out = np.full(4 * count + shift + 64, 0xA5, np.uint8)
        with forced("c", isa):
            codec.decode(memoryview(payload), FLOAT32, out[shift : shift + 4 * count].data)
        assert out[shift : shift + 4 * count].tobytes() == expected.tobytes()
        assert (out[:shift] == 0xA5).all() and (out[shift + 4 * count :] == 0xA5).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("at", [0, 4095, 4096, 8200])
def test_nan_and_inf_are_refused_by_every_instruction_set(at: int, isa: str) -> None:
    """In whole blocks and in the tail; NaN with the sign bit and with all bits set, too."""
    for bad in (0x7F800000, 0xFF800000, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF):
        values = np.ones(8201, np.float32)
        values.view(np.uint32)[at] = bad
        with forced("c", isa), pytest.raises(NonFiniteValues):
            codes_of(values, 4096)
