"""Promises of ``uniform``: the size and error it states, exact outliers, the same bytes from every kernel."""

from __future__ import annotations

import threading
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorbus.codecs.base import Accumulator
from tensorbus.codecs.dtypes import DTYPES, DType
from tensorbus.codecs.kernels import forced, native, pointer, usable
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.codecs.quantizers.even_steps import group_symbols
from tensorbus.codecs.quantizers.uniform import Uniform
from tensorbus.codecs.registry import quantizer
from tensorbus.errors import InvalidSpecification, NonFiniteValues, PayloadMismatch

Array = npt.NDArray[np.generic]

FLOAT32 = DTYPES["float32"]
SOURCES = ("float32", "float64", "float16", "bfloat16")
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.319, 1.0, 2.5)
PAIRS = [(step, source) for source in SOURCES for step in (STEPS if source == "float32" else STEPS[1::3])]
LARGEST = {"float16": 65504.0, "bfloat16": 3.38e38, "float32": 3.4e38, "float64": 3.4e38}


KERNELS = usable()

FINITE = st.floats(-(2.0**127), 2.0**127, width=32)

KINDS = ("normal", "laplace", "student", "sparse", "zero blocks", "spikes", "huge", "tiny", "equal")


def values_of(kind: str, count: int, dtype: DType = FLOAT32, seed: int = 0) -> Array:
    """Values of many shapes as numpy holds them in ``dtype``; bfloat16 as its bits."""
    random = np.random.default_rng(seed)
    normal = random.standard_normal(count)
    largest = LARGEST[dtype.name]
    values = {
        "normal": lambda: normal * 0.02,
        "laplace": lambda: random.laplace(size=count),
        "student": lambda: random.standard_t(1.5, count),
        "sparse": lambda: normal * (random.random(count) < 0.01),
        "zero blocks": lambda: normal * (np.arange(count) // 4096 % 2),
        "spikes": lambda: np.where(np.arange(count) % 4096 == 7, 60_000, 0.1 * normal),
        "huge": lambda: normal * largest / 2,
        "tiny": lambda: normal * 1e-38,
        "equal": lambda: np.full(count, -largest),
    }[kind]()
    values = np.clip(values, -largest, largest)
    if dtype.name == "bfloat16":
        return (values.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return values.astype(dtype.name)


def numbers(values: Array, dtype: DType = FLOAT32) -> npt.NDArray[np.float64]:
    """What the originals stand for."""
    if dtype.name == "bfloat16":
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    return values.astype(np.float64)


def raw(values: Array) -> memoryview:
    """The array's own bytes."""
    return values.reshape(-1).view(np.uint8).data


def encode(codec: Uniform, values: Array, dtype: DType = FLOAT32) -> bytes:
    """The payload, which is seen to keep to its bound and its buffer."""
    out = np.full(codec.encoded_size(values.size, dtype) + 16, 0xA5, np.uint8)
    nbytes = codec.encode(raw(values), dtype, out[:-16].data).nbytes
    assert nbytes <= codec.encoded_size(values.size, dtype)
    assert (out[nbytes:] == 0xA5).all(), "wrote beyond the payload"
    return out[:nbytes].tobytes()


def decode(codec: Uniform, payload: bytes, like: Array, dtype: DType = FLOAT32) -> Array:
    """The values, in a buffer that is seen to keep its end."""
    out = np.full(raw(like).nbytes + 16, 0xA5, np.uint8)
    codec.decode(memoryview(payload), dtype, out[:-16].data)
    assert (out[-16:] == 0xA5).all(), "wrote beyond its place"
    return out[:-16].view(like.dtype)


def decoded_or_none(codec: Uniform, payload: bytes, like: Array) -> bytes | None:
    """What decoding gives; None if the payload is refused."""
    try:
        return decode(codec, payload, like).tobytes()
    except PayloadMismatch:
        return None


def error(codec: Uniform, values: Array) -> float:
    """Relative mean square error of one trip."""
    before, after = numbers(values), numbers(decode(codec, encode(codec, values), values))
    return float(np.sum((before - after) ** 2) / np.sum(before**2))


def bits(codec: Uniform, values: Array) -> float:
    """Bits a value, everything counted."""
    return 8 * len(encode(codec, values)) / values.size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("step", "source"),
    [
        *((step, "float32") for step in STEPS),
        *((step, source) for step in (0.02, 0.319, 2.5) for source in SOURCES[1:]),
    ],
)
def test_every_kernel_gives_the_same_bytes_values_and_sums(step: float, source: str, kind: str) -> None:
    """numpy, and C with any instructions, agree on payloads, values and sums to the bit."""
    codec, dtype = Uniform(step), DTYPES[source]
    for count in (1, 100, 2 * 4096 + 33):
        values = values_of(kind, count, dtype)
        results: set[tuple[bytes, bytes, bytes, bytes]] = set()
        for kernels in KERNELS:
            with forced(*kernels):
                payload = encode(codec, values, dtype)
                after = decode(codec, payload, values, dtype)
                sums = [np.ones(count, number) for number in (np.float32, np.float64)]
                for one in sums:
                    codec.accumulate(memoryview(payload), dtype, cast(Accumulator, one), -0.3)
                results.add((payload, after.tobytes(), sums[0].tobytes(), sums[1].tobytes()))
                assert np.isfinite(numbers(after, dtype)).all()
        assert len(results) == 1


@pytest.mark.parametrize("kernels", KERNELS)
def test_default_has_the_error_of_nf4_in_less_than_12_percent(kernels: tuple[str, str | None]) -> None:
    """Normal values: at most the error of nf4 on the same values, in at most 11.7 % of float32."""
    values = values_of("normal", 1 << 20)
    nf4 = quantizer("nf4")
    payload = bytearray(nf4.encoded_size(values.size, FLOAT32))
    nf4.encode(raw(values), FLOAT32, memoryview(payload))
    after = np.empty_like(values)
    nf4.decode(memoryview(payload), FLOAT32, raw(after))
    nf4_error = np.sum((numbers(values) - numbers(after)) ** 2) / np.sum(numbers(values) ** 2)
    with forced(*kernels):
        assert error(Uniform(), values) <= min(nf4_error, 8.45e-3)
        assert bits(Uniform(), values) / 32 <= 0.117


@pytest.mark.parametrize("step", [0.1, 0.319, 0.7, 1.0])
def test_heavy_tails_take_fewer_bits_at_the_same_error(step: float) -> None:
    """At any step, values as updates have them are smaller than normal ones, and their error is no larger."""
    codec, count = Uniform(step), 1 << 19
    normal = values_of("normal", count)
    random = np.random.default_rng(5)
    for heavy in (random.laplace(size=count), random.standard_t(3, count), random.standard_t(5, count)):
        assert bits(codec, heavy.astype(np.float32)) < bits(codec, normal)
        assert error(codec, heavy.astype(np.float32)) < 1.01 * error(codec, normal)


@pytest.mark.parametrize(
    ("step", "stated_bits", "stated_error"),
    [
        (0.0125, 8.42, 1.3e-5),
        (0.1, 5.42, 8.33e-4),
        (0.319, 3.74, 8.41e-3),
        (1.03, 2.19, 0.0812),
        (2.5, 1.33, 0.369),
    ],
)
def test_one_codec_spans_sizes_and_errors_as_stated(
    step: float, stated_bits: float, stated_error: float
) -> None:
    """Bits and error of normal values are those of the table in the module."""
    values = values_of("normal", 1 << 20)
    assert bits(Uniform(step), values) == pytest.approx(stated_bits, rel=0.005)
    assert error(Uniform(step), values) == pytest.approx(stated_error, rel=0.01)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", ["normal", "laplace", "sparse", "equal"])
def test_error_is_a_contraction_at_every_step(step: float, kind: str) -> None:
    """What is lost is always less than what was there, so that feedback brings the whole through in time."""
    values = values_of(kind, 50_000)
    assert error(Uniform(step), values) < (0.7 if kind == "equal" else min(0.4, step**2 / 12 * 1.05 + 1e-6))


@pytest.mark.parametrize("kernels", KERNELS)
def test_outliers_are_exact(kernels: tuple[str, str | None]) -> None:
    """Values beyond the range of the codes come back bit for bit, wherever they are."""
    values = np.random.default_rng(3).standard_normal(5 * 4096 + 50).astype(np.float32) * np.float32(1e-3)
    places = [0, 2 * 4096 - 1, 2 * 4096, 3 * 4096 + 17, 4 * 4096 + 2048]
    values[places] = np.array([1234.567, -7.7e7, 3.3e38, -0.333, 0.777], np.float32)
    for step in (0.02, 0.319):
        with forced(*kernels):
            after = decode(Uniform(step), encode(Uniform(step), values), values)
        assert np.array_equal(after[places], values[places])


@settings(max_examples=60, deadline=None)
@given(
    step=st.floats(0.01, 2.5),
    count=st.integers(1, 9000),
    outliers=st.lists(
        st.tuples(st.integers(0, 8999), st.floats(-(2.0**127), 2.0**127, width=32)), max_size=60
    ),
    scale=st.sampled_from([0.0, 1e-44, 1e-38, 1e-3, 1e30]),
    source=st.sampled_from(["float32", "float64"]),
)
def test_size_never_exceeds_its_bound_and_no_value_is_far_off(
    step: float, count: int, outliers: list[tuple[int, float]], scale: float, source: str
) -> None:
    """Whatever the values: the payload keeps to its bound, and each value is within about half a step."""
    values = (np.random.default_rng(count).standard_normal(count) * scale).astype(source)
    for at, value in outliers:
        values[at % count] = value
    codec, dtype = Uniform(step), DTYPES[source]
    after = numbers(decode(codec, encode(codec, values, dtype), values, dtype), dtype)
    whole = np.zeros(-(-count // 4096) * 4096)
    whole[:count] = values
    sizes = np.minimum(4096, count - 4096 * np.arange(whole.size // 4096))
    units = step * np.sqrt(np.sum(whole.reshape(-1, 4096) ** 2, axis=1) / sizes)
    unit = np.repeat(units, 4096)[:count]
    # The gain draws codes to zero; the largest values of a dtype may lose one step more.
    shrunk = np.abs(values) * (step**2 / 12)
    # A block whose step is no normal number counts as zeros.
    vanished = np.where(unit < 1.2e-38, np.abs(values), 0)
    assert np.all(np.abs(values - after) <= 1.5 * unit * (1 + 1e-5) + shrunk + vanished + 1.2e-38)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("step", [0.02, 0.319, 2.5])
def test_slices_give_the_values_of_the_whole(step: float, source: str) -> None:
    """Cut at multiples of the blocksize, each coded on its own, slices decode to the bits of the whole."""
    codec, dtype = Uniform(step), DTYPES[source]
    values = values_of("student", 9 * 4096 + 123, dtype)
    whole = decode(codec, encode(codec, values, dtype), values, dtype)
    for length in (4096, 3 * 4096):
        parts = [values[start : start + length] for start in range(0, values.size, length)]
        again = [decode(codec, encode(codec, part, dtype), part, dtype) for part in parts]
        assert raw(np.concatenate(again)) == raw(whole)


def test_more_than_a_group_decodes_and_sums() -> None:
    """A payload of several groups of a million values, the last with a tail, is one like any other."""
    values = values_of("laplace", (1 << 20) + 4096 + 5)
    codec = Uniform(0.05)
    payloads: list[bytes] = []
    for kernels in (KERNELS[0], KERNELS[-1]):
        with forced(*kernels):
            payload = encode(codec, values)
            after = decode(codec, payload, values)
            sums = np.zeros(values.size)
            codec.accumulate(memoryview(payload), FLOAT32, sums, 2.0)
        assert np.array_equal(sums, 2 * numbers(after))
        payloads += [payload, after.tobytes()]
    assert payloads[:2] == payloads[2:] or len(KERNELS) == 1
    assert np.max(np.abs(numbers(values) - numbers(after))) < 0.06


@pytest.mark.parametrize("kernels", KERNELS)
def test_payloads_of_another_size_are_refused(kernels: tuple[str, str | None]) -> None:
    """A payload that is cut, or goes on, or holds more or fewer values than asked for, is malformed."""
    with forced(*kernels):
        for step in (0.05, 0.319):
            codec, values = Uniform(step), values_of("student", 2 * 4096 + 99)
            payload = encode(codec, values)
            for other in (
                b"",
                payload[:7],
                payload[:19],
                payload[: len(payload) // 2],
                payload[:-1],
                payload + b"\1",
            ):
                assert decoded_or_none(codec, other, values) is None
                with pytest.raises(PayloadMismatch):
                    codec.accumulate(memoryview(other), FLOAT32, np.zeros(values.size), 1.0)
            for count in (1, 4096, values.size - 1, values.size + 1, 100 * values.size):
                assert decoded_or_none(codec, payload, np.zeros(count, np.float32)) is None


@settings(max_examples=150, deadline=None)
@given(
    step=st.sampled_from([0.02, 0.05, 0.1, 0.319]),
    kind=st.sampled_from(["normal", "spikes", "zero blocks", "student"]),
    count=st.sampled_from([1, 100, 4096, 9000]),
    flips=st.lists(st.tuples(st.integers(0, 2**31), st.integers(0, 7)), min_size=1, max_size=4),
    near_head=st.booleans(),
)
def test_damage_is_refused_or_decodes_the_same_everywhere(
    step: float, kind: str, count: int, flips: list[tuple[int, int]], near_head: bool
) -> None:
    """Flipped bits are never followed out of a buffer: refused, or other values, the same everywhere."""
    codec, values = Uniform(step), values_of(kind, count)
    payload = bytearray(encode(codec, values))
    for at, bit in flips:
        payload[at % min(len(payload), 40 if near_head else len(payload))] ^= 1 << bit
    outcomes: list[npt.NDArray[np.float32] | None] = []
    for kernels in KERNELS:
        with forced(*kernels):
            found = decoded_or_none(codec, bytes(payload), values)
            outcomes.append(None if found is None else np.frombuffer(found, np.float32))
    for outcome in outcomes[1:]:
        if outcomes[0] is None or outcome is None:
            assert outcome is outcomes[0]
        else:
            np.testing.assert_array_equal(outcome, outcomes[0])


@settings(max_examples=100, deadline=None)
@given(payload=st.binary(max_size=400), count=st.integers(0, 20_000), step=st.sampled_from([0.05, 0.319]))
def test_garbage_is_refused(payload: bytes, count: int, step: float) -> None:
    """Random bytes are malformed for any count; the count alone says how much is ever written."""
    values = np.zeros(count, np.float32)
    for kernels in KERNELS:
        with forced(*kernels):
            found = decoded_or_none(Uniform(step), payload, values)
        assert found is None or (count == 0 and payload == b"") or len(found) == 4 * count


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, 3e38])
def test_scales_are_not_trusted(kernels: tuple[str, str | None], scale: float) -> None:
    """A scale of NaN, Inf or too large a number decodes to what it says, and never enters an accumulator."""
    codec, values = Uniform(), values_of("normal", 5000)
    payload = bytearray(encode(codec, values))
    payload[8:12] = np.float32(scale).tobytes()
    with forced(*kernels):
        with np.errstate(all="raise"):
            after = decode(codec, bytes(payload), values)
        assert not np.isfinite(after.view(np.float32)[:4096]).all()
        with pytest.raises(NonFiniteValues):
            codec.accumulate(memoryview(payload), FLOAT32, np.zeros(5000, np.float32), 1.0)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("bad", [[5, 5], [9, 5], [5, 5000], [4_000_000_000, 4_000_000_001]])
def test_indices_of_escapes_are_not_trusted(kernels: tuple[str, str | None], bad: list[int]) -> None:
    """Escapes whose places do not rise, or are none of the slice's, are malformed."""
    values = values_of("normal", 5000)
    values[[5, 4000]] = 1e4
    codec = Uniform()
    payload = bytearray(encode(codec, values))
    assert payload[:4] == b"\2\0\0\0"
    payload[16:20], payload[24:28] = (np.uint32(index).tobytes() for index in bad)
    with forced(*kernels):
        assert decoded_or_none(codec, bytes(payload), values) is None


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("at", [0, 4096, 5000])
def test_nan_and_inf_are_refused(kernels: tuple[str, str | None], source: str, at: int) -> None:
    """Values that are no numbers are refused by name, wherever they are."""
    dtype = DTYPES[source]
    for bad in (np.nan, np.inf, -np.inf):
        values = values_of("normal", 5001, dtype)
        values[at] = np.uint16(np.float32(bad).view(np.uint32) >> 16) if source == "bfloat16" else bad
        with forced(*kernels), pytest.raises(NonFiniteValues):
            encode(Uniform(), values, dtype)


def test_zeros_cost_next_to_nothing_and_stay_zeros() -> None:
    """Blocks of zeros are their scales alone, and a tensor of zeros is no more."""
    values = np.zeros(100 * 4096, np.float32)
    assert len(encode(Uniform(), values)) == 8 + 4 * 100
    values[50 * 4096 : 51 * 4096] = 1
    for step in (0.02, 0.319):
        payload = encode(Uniform(step), values)
        assert len(payload) < 8 + 4 * 100 + 4096
        assert not decode(Uniform(step), payload, values)[: 50 * 4096].any()


def test_payload_of_a_slice_depends_on_that_slice_alone() -> None:
    """Bytes do not change with what the same thread coded before."""
    codec, values = Uniform(), values_of("student", 50_000)
    before = encode(codec, values)
    encode(codec, values_of("normal", 1 << 18))
    assert encode(codec, values) == before


def test_step_is_its_primary_parameter() -> None:
    """``uniform:0.5`` is a pipeline, and its JSON says the step."""
    pipeline = Pipeline.parse("uniform:0.5")
    assert pipeline.quantizer.config() == {"name": "uniform", "step": 0.5}
    assert quantizer({"name": "uniform", "step": 1}).config() == {"name": "uniform", "step": 1.0}
    assert quantizer("uniform").config() == {"name": "uniform", "step": 0.319}


@pytest.mark.parametrize("step", [0, 0.0099, 2.51, -1, True, "0.3", None])
def test_other_steps_are_refused(step: object) -> None:
    """Steps are numbers from 0.01 to 2.5."""
    with pytest.raises(InvalidSpecification, match="step"):
        quantizer({"name": "uniform", "step": step})


def test_values_that_change_meanwhile_write_nothing_beyond() -> None:
    """A model that is trained while it is published may give nonsense or an error, never spoil memory."""
    library = native()
    if library is None:
        pytest.skip("only compiled kernels could write beyond")
    codec, count = Uniform(), 1 << 20
    values = np.full(count, 1e-3, np.float32)
    out = np.empty(codec.encoded_size(count, FLOAT32), np.uint8)
    codec.encode(values.view(np.uint8).data, FLOAT32, out.data)
    room = group_symbols().size
    symbols = np.full(room + 8 * count, 0xA5, np.uint8)
    payload = np.full(out.size + 8 * count, 0xA5, np.uint8)
    over = threading.Event()

    def train() -> None:
        while not over.is_set():
            values[:] = 1e6
            values[:] = 1e-3

    trainer = threading.Thread(target=train)
    trainer.start()
    try:
        for _ in range(300):
            library.tb_even_encode(
                0, pointer(values), count, codec.step, 0, pointer(symbols), pointer(payload)
            )
    finally:
        over.set()
        trainer.join()
    assert (symbols[room:] == 0xA5).all()
    assert (payload[out.size :] == 0xA5).all()
