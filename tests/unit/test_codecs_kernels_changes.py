"""Promises of the kernels of changes: the bits of numpy, for every dtype, length, address and number."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from tensorbus.codecs.bases import ItemBase, read_parts
from tensorbus.codecs.changes import add, subtract
from tensorbus.codecs.dtypes import DTYPES
from tensorbus.codecs.item import ItemSpec
from tensorbus.codecs.kernels import forced, usable
from tensorbus.codecs.memory import MemoryItem
from tensorbus.codecs.scratch import PIECE
from tensorbus.errors import NonFiniteValues

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

FLOATS = ("float64", "float32", "float16", "bfloat16")
COUNTS = (0, 1, 7, 17, 511, 512, 513, 1000, 4099, PIECE + 1)
FINITE = (0.0, -0.0, 1.0, -1.0, 5e-324, -3e-320, 1e-45, -1e-40, 6e-8, -3e-6, 1e-38, 65504.0, 3e38, -3e38)


ISAS = [isa for _, isa in usable() if isa is not None]
"""Instruction sets that this processor has."""


def finite_bytes(count: int, dtype: str, seed: int, address: int = 0) -> Bytes:
    """Finite numbers of every magnitude, every other one special, at ``address`` behind an aligned place."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(count) * 10.0 ** rng.integers(-6, 4, count)
    values[::2] = rng.choice(FINITE, values[::2].size)
    if dtype == "float16":
        values = np.clip(values, -30000, 30000)
    elif dtype != "float64":
        values = np.clip(values, -1e38, 1e38)
    single = values.astype(np.float32)
    bits = (single.view(np.uint32) >> 16).astype(np.uint16)
    return placed((bits if dtype == "bfloat16" else values.astype(dtype)).view(np.uint8), address)


def any_bytes(count: int, dtype: str, seed: int) -> Bytes:
    """All kinds of numbers, NaNs of any payload and infinities among them."""
    size = DTYPES[dtype].itemsize
    exponents = {8: 0x7FF0 << 48, 4: 0x7F80 << 16, 2: 0x7C00 if dtype == "float16" else 0x7F80}[size]
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 256, count * size, np.uint8).view(f"u{size}")
    bits[::5] |= np.array(exponents, np.uint64).astype(bits.dtype)
    bits[::15] &= np.array(exponents | 1 << (8 * size - 1), np.uint64).astype(bits.dtype)
    return bits.view(np.uint8)


def placed(data: Bytes, address: int) -> Bytes:
    """A copy ``address`` bytes behind a place that is aligned to 64 bytes."""
    room = np.empty(data.size + 128, np.uint8)
    start = -room.ctypes.data % 64 + address
    room[start : start + data.size] = data
    return room[start : start + data.size]


def difference(values: Bytes, base: Bytes, dtype: str) -> bytes | None:
    """Its bits; None if it is refused."""
    out = np.full(values.size // DTYPES[dtype].itemsize, 7, np.float32)
    try:
        subtract(values, base, DTYPES[dtype], out)
    except NonFiniteValues:
        return None
    return out.tobytes()


def total(base: Bytes, change: Floats, dtype: str, address: int = 0) -> bytes:
    """The bits of the sum; for float32, computed in place, as a decoder does it."""
    if dtype == "float32":
        out = placed(change.view(np.uint8), address)
        add(base, out.view(np.float32), DTYPES[dtype], out)
    else:
        out = placed(np.full_like(base, 7), address)
        add(base, change.copy(), DTYPES[dtype], out)
    return out.tobytes()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("address", [0, 1, 4, 8])
def test_differences_have_the_bits_of_numpy(dtype: str, isa: str, address: int) -> None:
    """Signs of zeros and denormals included; wherever the values lie."""
    for count in COUNTS:
        values = finite_bytes(count, dtype, count, address)
        base = finite_bytes(count, dtype, count + 1, address * 3)
        with forced("numpy"):
            expected = difference(values, base, dtype)
        assert dtype == "float64" or expected is not None
        with forced("c", isa):
            assert difference(values, base, dtype) == expected


@pytest.mark.parametrize("isa", [None, *ISAS])
@pytest.mark.parametrize("dtype", FLOATS)
def test_equal_bits_are_no_change(dtype: str, isa: str | None) -> None:
    """Whatever they are, NaN and Inf too, the difference is +0; one other bit of an Inf is refused."""
    for count in COUNTS[1:]:
        base = any_bytes(count, dtype, count)
        values = base.copy()
        size = DTYPES[dtype].itemsize
        with forced("numpy" if isa is None else "c", isa):
            assert difference(values, base, dtype) == bytes(4 * count)
            for at in {0, (count - 1) // 15 * 15}:  # an Inf, see any_bytes
                values[at * size + size - 1] ^= 0x80
                assert difference(values, base, dtype) is None
                values[at * size + size - 1] ^= 0x80
                values[at * size] ^= 1
                assert difference(values, base, dtype) is None
                values[at * size] ^= 1


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_changes_beside_what_is_not_finite_have_the_bits_of_numpy(dtype: str, isa: str) -> None:
    """Where the base has NaN and Inf, and values too, the others are as elsewhere."""
    size = DTYPES[dtype].itemsize
    for count in COUNTS:
        values, base = (finite_bytes(count, dtype, seed) for seed in (count, count + 1))
        rows, held = values.reshape(-1, size), base.reshape(-1, size)
        rows[::5] = held[::5] = any_bytes(count, dtype, 3).reshape(-1, size)[::5]
        with forced("numpy"):
            expected = difference(values, base, dtype)
        with forced("c", isa):
            assert difference(values, base, dtype) == expected


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("address", [0, 1, 4, 8])
def test_sums_have_the_bits_of_numpy(dtype: str, isa: str, address: int) -> None:
    """Rounded to the dtype; Inf where they are beyond it; NaN and Inf of the base stay."""
    for count in COUNTS:
        change = finite_bytes(count, "float32", count).view(np.float32)
        for base in (finite_bytes(count, dtype, 5, address * 3), any_bytes(count, dtype, 6)):
            with forced("numpy"):
                expected = total(base, change, dtype)
            with forced("c", isa):
                assert total(base, change, dtype, address) == expected


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_difference_too_large_is_refused(dtype: str) -> None:
    """Finite values whose difference is beyond float32; float16 has none."""
    largest = {"float64": 1e300, "float32": 3e38, "float16": 60000.0, "bfloat16": 3e38}[dtype]
    values, base = (
        np.array([0.0, sign * largest], np.float64).astype("float64" if dtype == "float64" else "float32")
        for sign in (1, -1)
    )
    if dtype == "bfloat16":
        values, base = ((single.view(np.uint32) >> 16).astype(np.uint16) for single in (values, base))
    elif dtype == "float16":
        values, base = values.astype(dtype), base.astype(dtype)
    for kernels in ("numpy", "c"):
        with forced(kernels):
            result = difference(values.view(np.uint8), base.view(np.uint8), dtype)
            assert (result is None) == (dtype != "float16")


class Read(MemoryItem):
    """An item whose bytes have to be read first."""

    stable = False


def test_a_base_in_memory_is_used_where_it_lies() -> None:
    """As one part and without a copy; another base comes piece by piece, with the same bytes."""
    values = finite_bytes(2 * PIECE + 3, "float32", 1)
    spec = ItemSpec("w", DTYPES["float32"], (2 * PIECE + 3,))
    for item, parts in ((MemoryItem(spec, values.data), 1), (Read(spec, values.data), 3)):
        seen = [
            (start, stop, part.tobytes(), np.shares_memory(part, values))
            for start, stop, part in read_parts(ItemBase([item]), spec, 1, 2 * PIECE + 1)
        ]
        assert b"".join(part for _, _, part, _ in seen) == values[4:-4].tobytes()
        assert [start for start, _, _, _ in seen] + [2 * PIECE + 1] == [0] + [stop for _, stop, _, _ in seen]
        assert len(seen) == parts
        assert all(shared == (parts == 1) for _, _, _, shared in seen)
