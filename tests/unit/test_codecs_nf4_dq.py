"""Promises of ``nf4-dq``: fewer bytes than nf4 at the same error, and slices that decode on their own."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from tensorbus.codecs.dtypes import DTYPES
from tensorbus.codecs.registry import quantizer

FLOAT32 = DTYPES["float32"]


def encode(name: str, values: npt.NDArray[np.float32]) -> bytes:
    """The payload."""
    codec = quantizer(name)
    out = bytearray(codec.encoded_size(values.size, FLOAT32))
    codec.encode(values.view(np.uint8).data, FLOAT32, memoryview(out))
    return bytes(out)


def decode(name: str, payload: bytes, count: int) -> npt.NDArray[np.float32]:
    """The values."""
    values = np.empty(count, np.float32)
    quantizer(name).decode(memoryview(payload), FLOAT32, values.view(np.uint8).data)
    return values


def test_size_is_that_of_codes_groups_and_blocks() -> None:
    """Half a byte a value, a byte a block of 64, and 8 bytes a group of 256 blocks: 12.90 % of float32."""
    codec = quantizer("nf4-dq")
    assert codec.blocksize == 16384
    assert codec.encoded_size(1 << 24, FLOAT32) == (1 << 23) + (1 << 18) + 8 * (1 << 10)
    assert codec.encoded_size(16385, FLOAT32) == 8193 + 257 + 16
    assert round(100 * codec.encoded_size(1 << 24, FLOAT32) / (4 << 24), 2) == 12.90


@pytest.mark.parametrize("degrees", [3, 1000])
def test_error_is_that_of_nf4(degrees: int) -> None:
    """On normal and on heavy-tailed values the mean square error is within 2 % of nf4's."""
    values = np.random.default_rng(7).standard_t(degrees, 1 << 20).astype(np.float32) * np.float32(0.02)
    errors = {
        name: float(np.square(values - decode(name, encode(name, values), values.size)).mean())
        for name in ("nf4", "nf4-dq")
    }
    assert errors["nf4-dq"] < 1.02 * errors["nf4"]


def test_codes_are_those_of_nf4() -> None:
    """Only the absmax differ from nf4's payload."""
    values = np.random.default_rng(8).standard_normal(40_001, np.float32)
    assert encode("nf4-dq", values)[:20_001] == encode("nf4", values)[:20_001]


def test_each_group_is_its_own() -> None:
    """The bytes of a group do not depend on the groups around it, so a slice has the bytes of the whole."""
    values = np.random.default_rng(9).standard_normal(16384 * 3 + 500, np.float32)
    values[16384:32768] *= 1e6
    whole = decode("nf4-dq", encode("nf4-dq", values), values.size)
    for start in range(0, values.size, 16384):
        part = values[start : start + 16384]
        assert (
            decode("nf4-dq", encode("nf4-dq", part), part.size).tobytes()
            == whole[start : start + 16384].tobytes()
        )


@pytest.mark.parametrize("largest", [0.0, 1e-45, 1e-38, 3.4e38])
def test_extremes_stay_finite_and_of_their_sign(largest: float) -> None:
    """Blocks of zeros, denormals or the largest numbers decode to finite values of no other sign."""
    values = np.linspace(-1, 1, 16384 * 2 + 100, dtype=np.float32) * np.float32(largest)
    values[:640] = 0
    decoded = decode("nf4-dq", encode("nf4-dq", values), values.size)
    assert np.isfinite(decoded).all()
    assert not (np.sign(decoded) * np.sign(values) < 0).any()
    assert not decoded[:640].any()
