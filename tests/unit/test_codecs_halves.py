"""Promises of ``fp16`` and ``bf16``: rounded to nearest, and nothing clipped in silence."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from tensorbus.codecs.base import Encoded
from tensorbus.codecs.dtypes import DTYPES
from tensorbus.codecs.floats import narrow
from tensorbus.codecs.registry import quantizer

FLOAT32 = DTYPES["float32"]


def encode(name: str, values: npt.NDArray[np.generic]) -> tuple[bytes, Encoded]:
    """The payload, and what encode() reports."""
    out = bytearray(2 * values.size)
    encoded = quantizer(name).encode(values.view(np.uint8).data, DTYPES[values.dtype.name], memoryview(out))
    return bytes(out), encoded


def every_exponent() -> npt.NDArray[np.float32]:
    """Finite float32 numbers with every exponent and awkward ends of the mantissa, both signs."""
    tops = np.arange(0x7F80, dtype=np.uint32) << np.uint32(16)
    ends = np.array([0, 1, 0x1000, 0x2FFF, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    bits = (tops[:, None] | ends).reshape(-1)
    return np.concatenate([bits, bits | np.uint32(0x80000000)]).view(np.float32)


def test_bf16_rounds_as_torch_does() -> None:
    """Every bfloat16 payload is what torch rounds the same values to."""
    torch = pytest.importorskip("torch")
    values = every_exponent()
    values = values[np.abs(values) <= (2 - 2**-7) * 2.0**127]
    theirs = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint8).numpy().tobytes()
    assert encode("bf16", values)[0] == theirs


def test_fp16_rounds_as_numpy_does() -> None:
    """Every float16 payload is what numpy rounds the same values to."""
    values = every_exponent()
    values = values[np.abs(values) <= 65504]
    assert encode("fp16", values)[0] == values.astype(np.float16).tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fp16_clips_at_its_largest_number_and_counts(dtype: type[np.generic]) -> None:
    """Values beyond ±65504 become ±65504, each is counted, and the others are untouched."""
    values = np.zeros(100_000, dtype)
    values[[0, 70_000, 99_999]] = [65505, -1e30, 3e38]
    values[[1, 2, 3]] = [65504, -65504, 65503.9]
    payload, encoded = encode("fp16", values)
    halves = np.frombuffer(payload, np.float16)
    assert encoded.clipped == 3
    assert halves[[0, 70_000, 99_999, 1, 2]].tolist() == [65504, -65504, 65504, 65504, -65504]
    assert np.isfinite(halves).all()


def test_float64_beyond_float32_is_clipped_not_refused() -> None:
    """A finite float64 is never mistaken for Inf."""
    values = np.array([1e300, -1e300, 1.0])
    for name, largest in (("fp16", 65504.0), ("bf16", (2 - 2**-7) * 2.0**127)):
        payload, encoded = encode(name, values)
        back = np.empty(3)
        quantizer(name).decode(memoryview(payload), DTYPES["float64"], back.view(np.uint8).data)
        assert encoded.clipped == 2
        assert back.tolist() == [largest, -largest, 1.0]


def test_bf16_counts_what_would_round_to_infinity() -> None:
    """The largest float32 would round to Inf; it is clipped and counted."""
    payload, encoded = encode("bf16", np.array([np.finfo(np.float32).max, 1], np.float32))
    assert encoded.clipped == 1
    assert np.frombuffer(payload, np.uint16).tolist() == [0x7F7F, 0x3F80]


def test_narrowing_nan_to_bfloat16_keeps_it_nan() -> None:
    """Rounding the bits of a NaN up never makes a number of it."""
    bits = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7F800000, 0x3F800000], np.uint32)
    out = np.empty(5, np.uint16)
    narrow(bits.view(np.float32), DTYPES["bfloat16"], out.view(np.uint8))
    wide = (out.astype(np.uint32) << np.uint32(16)).view(np.float32)
    assert np.isnan(wide[:3]).all()
    assert wide[3:].tolist() == [np.inf, 1.0]
