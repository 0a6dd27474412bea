"""Promises of the stages: values come back, what did not change costs nothing, errors do not add up."""

from __future__ import annotations

import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorbus.codecs.base import Accumulator, SliceCodec
from tensorbus.codecs.bases import ItemBase
from tensorbus.codecs.chain import bind, codec_of
from tensorbus.codecs.context import CodecContext
from tensorbus.codecs.dtypes import DTYPES
from tensorbus.codecs.item import ItemSpec
from tensorbus.codecs.memory import MemoryItem
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.codecs.residuals import MemoryResiduals
from tensorbus.errors import InvalidSpecification, NonFiniteValues, PayloadMismatch

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float32]

FLOATS = ("float64", "float32", "float16", "bfloat16")
QUANTIZERS = ("none", "bf16", "int8", "nf4", "nf4-dq", "lloyd:2", "uniform", "lossless")
BEFORE = ("", "delta | ", "same | ", "rotate | ", "delta | rotate | ", "same | rotate | ")
CHAINS = [before + quantizer for before in BEFORE for quantizer in QUANTIZERS]
LOSSY_CHAINS = [chain for chain in CHAINS if not chain.endswith(("none", "lossless"))]


def original(values: npt.NDArray[np.float64] | Floats, dtype: str) -> Array:
    """Values as numpy holds them in ``dtype``; bfloat16 as its bits, cut off."""
    if dtype == "bfloat16":
        return (values.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return values.astype(dtype)


def numbers(values: Array, dtype: str) -> npt.NDArray[np.float64]:
    """What they stand for."""
    if dtype == "bfloat16":
        values = (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(np.float64)


def raw(values: Array) -> memoryview:
    """Their own bytes."""
    return values.reshape(-1).view(np.uint8).data


class Link:
    """Both ends of a transfer of one tensor, and the base that they hold; with feedback, of one message."""

    def __init__(
        self, text: str, base: Array, dtype: str = "float32", residuals: MemoryResiduals | None = None
    ) -> None:
        self._residuals = residuals
        self._pass = residuals.begin("m") if residuals is not None else None
        self.spec = ItemSpec("w", DTYPES[dtype], base.shape)
        self.base = ItemBase([MemoryItem(self.spec, raw(base))])
        publisher = CodecContext(base=self.base, residuals=self._pass)
        self.sender: SliceCodec = bind(Pipeline.parse(text).resolved(publisher), self.spec, publisher)
        self.item = ItemSpec("w", self.spec.dtype, base.shape, codec=self.sender.config())
        self.receiver = codec_of(self.item, CodecContext(bases={self.base.id: self.base}))

    def encode(self, values: Array, offset: int = 0) -> memoryview:
        """The payload, in a buffer of its own."""
        out = memoryview(bytearray(self.sender.encoded_size(values.size)))
        return out[: self.sender.encode(raw(values), offset, out).nbytes]

    def seal(self) -> None:
        """All of the message was encoded."""
        assert self._pass is not None
        self._pass.seal()

    def acknowledge(self) -> None:
        """All of the message was encoded, and arrived."""
        assert self._residuals is not None
        self.seal()
        self._residuals.commit()

    def decode(self, payload: memoryview, values: Array, offset: int = 0) -> Array:
        """What the receiver makes of it, shaped like ``values``."""
        out = np.empty_like(values)
        self.receiver.decode(payload, offset, raw(out))
        return out


def pair(count: int, dtype: str, seed: int = 0, step: float = 0.01) -> tuple[Array, Array]:
    """A base, and values that differ from it a little."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal(count)
    return original(base, dtype), original(base + step * rng.standard_normal(count), dtype)


ROUNDING = {"float64": 2e-8, "float32": 2e-7, "float16": 1e-3, "bfloat16": 8e-3}
"""Of values of about 4, besides the quantizer's error; float64 differences are rounded to float32."""


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("quantizer", ["none", "int8", "nf4", "lloyd:2"])
@pytest.mark.parametrize("rotate", ["", "rotate | "])
def test_a_delta_comes_back_within_the_error_of_the_difference(
    dtype: str, quantizer: str, rotate: str
) -> None:
    """What is lost is a part of the difference, and one rounding of the sum to the original dtype."""
    base, values = pair(10_007, dtype)
    link = Link(f"delta | {rotate}{quantizer}", base, dtype)
    got = numbers(link.decode(link.encode(values), values), dtype)
    meant, change = numbers(values, dtype), numbers(values, dtype) - numbers(base, dtype)
    allowed = {"none": 0.0 if not rotate else 1e-6, "int8": 0.02, "nf4": 0.12, "lloyd:2": 0.45}[quantizer]
    assert np.sqrt(np.mean((got - meant) ** 2)) <= allowed * np.sqrt(np.mean(change**2)) + ROUNDING[dtype]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("text", ["delta | nf4", "delta | rotate | lloyd:2", "delta | none", "same | nf4"])
def test_what_did_not_change_has_no_payload_and_every_bit(text: str, dtype: str) -> None:
    """A slice that equals the base is named: its bits come from there, signs of zeros, NaN and Inf too."""
    base, _ = pair(3000, dtype)
    base[:5] = original(np.array([0.0, -0.0, np.nan, np.inf, -np.inf]), dtype)
    link = Link(text, base, dtype)
    if text == "delta | none" and DTYPES[dtype].itemsize == 2:
        assert link.sender.base is None, "float32 differences would be larger than the values"
        return
    payload = link.encode(base.copy())
    assert payload.nbytes == 0
    got = link.decode(payload, base)
    assert bytes(raw(got)) == bytes(raw(base))
    sums = np.ones(base.size, np.float64)
    link.receiver.change().accumulate(payload, 0, sums, 3.0)
    assert (sums == 1).all(), "no change adds nothing"
    decoded = np.full(base.size, 7, np.dtype(link.receiver.change().dtype.name))
    link.receiver.change().decode(payload, 0, raw(decoded))
    assert not decoded.any()


@pytest.mark.parametrize("text", ["delta | nf4", "same | none"])
def test_nothing_is_decoded_into_the_memory_of_the_base(text: str) -> None:
    """A base stays what its id says: whoever loads into its memory is told, and nothing is changed."""
    base, values = pair(1000, "float32")
    link = Link(text, base)
    payload, before = link.encode(values), base.copy()
    with pytest.raises(InvalidSpecification, match="memory of the base"):
        link.receiver.decode(payload, 0, raw(base))
    assert np.array_equal(base, before)


def test_infinities_of_the_base_are_no_change() -> None:
    """A mask of -Inf stays as it is while the values beside it change; a new Inf is refused."""
    base, values = pair(1000, "float32")
    base[::7] = values[::7] = np.float32("-inf")
    link = Link("delta | nf4", base)
    got = numbers(link.decode(link.encode(values), values), "float32")
    finite = np.isfinite(got)
    assert (finite == np.isfinite(numbers(values, "float32"))).all()
    assert np.abs(got[finite] - numbers(values, "float32")[finite]).max() < 0.01
    for text in ("delta | nf4", "delta | none"):
        link = Link(text, base)
        for at, wrong in ((3, np.float32("inf")), (3, np.float32("nan")), (7, np.float32(1))):
            spoilt = values.copy()
            spoilt[at] = wrong
            with pytest.raises(NonFiniteValues):
                link.encode(spoilt)


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_same_is_for_every_dtype(dtype: str) -> None:
    """Bits are compared and bits are sent, whatever they mean."""
    size = DTYPES[dtype].itemsize
    bits = np.random.default_rng(0).integers(0, 256, 2000 * size, np.uint8)
    spec = ItemSpec("w", DTYPES[dtype], (2000,))
    context = CodecContext(base=ItemBase([MemoryItem(spec, bits.data)]))
    codec = bind(Pipeline.parse("same | none").resolved(context), spec, context)
    out, back = np.zeros(2000 * size, np.uint8), np.zeros(2000 * size, np.uint8)
    assert codec.encode(bits.copy().data, 0, out.data).nbytes == 0
    codec.decode(memoryview(b""), 0, back.data)
    assert (back == bits).all()
    changed = bits.copy()
    changed[-1] ^= 1
    assert codec.encode(changed.data, 0, out.data).nbytes == 2000 * size
    codec.decode(out.data, 0, back.data)
    assert (back == changed).all()


@pytest.mark.parametrize("dtype", ["int64", "float16", "float64"])
def test_the_change_of_same_is_what_was_added(dtype: str) -> None:
    """Slices that are there are whole values; their change is the difference from the base."""
    base, values = np.arange(500).astype(dtype), np.arange(500)[::-1].astype(dtype)
    link = Link("same | none", base, dtype)
    payload, change = link.encode(values), link.receiver.change()
    sums = np.zeros(500, np.float64)
    change.accumulate(payload, 0, sums, 0.5)
    assert (sums == 0.5 * (values.astype(np.float64) - base.astype(np.float64))).all()
    decoded = np.empty(500, np.dtype(change.dtype.name))
    change.decode(payload, 0, raw(decoded))
    assert (decoded == values.astype(np.float64) - base.astype(np.float64)).all()


# --- all chains ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", CHAINS)
@settings(max_examples=8, deadline=None)
@given(
    count=st.sampled_from([1, 2, 63, 65, 80_000, 65_536, 4096 * 16, 100_003]),
    dtype=st.sampled_from(FLOATS),
    seed=st.integers(0, 99),
    weight=st.sampled_from([1.0, -0.5, 1e-3, 96.0]),
)
def test_accumulating_is_decoding_and_adding(
    text: str, count: int, dtype: str, seed: int, weight: float
) -> None:
    """``accumulator += weight * decode(payload)``, for each chain, dtype and size."""
    base, values = pair(count, dtype, seed)
    link = Link(text, base, dtype)
    payload = link.encode(values)
    decoded = numbers(link.decode(payload, values), dtype)
    both: tuple[Accumulator, ...] = (np.full(count, 2.0, np.float32), np.full(count, 2.0, np.float64))
    for sums in both:
        link.receiver.accumulate(payload, 0, sums, weight)
        assert np.allclose(sums, 2 + weight * decoded, rtol=1e-5, atol=1e-5 * abs(weight))


@pytest.mark.parametrize("text", CHAINS)
@settings(max_examples=5, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 8), max_size=4),
    dtype=st.sampled_from(FLOATS),
    seed=st.integers(0, 99),
)
def test_slices_do_not_change_the_values(text: str, cuts: list[int], dtype: str, seed: int) -> None:
    """A tensor cut at multiples of the block size decodes, slice by slice, to the bits of the tensor whole.

    But for slices without any change, which are the base's own bits.
    """
    base, values = pair(131_087, dtype, seed)
    values[:70_000] = base[:70_000]  # some slices are unchanged
    link = Link(text, base, dtype)
    whole = link.decode(link.encode(values), values)
    block = link.sender.blocksize
    places = sorted({0, values.size, *(cut * block for cut in cuts if cut * block < values.size)})
    for start, stop in pairwise(places):
        part = values[start:stop]
        got = link.decode(link.encode(part, start), part, start)
        unchanged = link.receiver.base is not None and (part == base[start:stop]).all()
        assert bytes(raw(got)) == bytes(raw((base if unchanged else whole)[start:stop]))


@pytest.mark.parametrize("text", CHAINS)
def test_threads_do_not_change_the_bytes(text: str) -> None:
    """Slices may be encoded by several threads at once, and the receiver's decoding, too."""
    base, values = pair(16_384 * 8, "float32")
    link = Link(text, base)

    def both(at: int) -> tuple[bytes, bytes]:
        part = values[at * 16_384 : (at + 1) * 16_384]
        payload = link.encode(part, at * 16_384)
        return bytes(payload), bytes(raw(link.decode(payload, part, at * 16_384)))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(both, range(8))) == [both(at) for at in range(8)]


@pytest.mark.parametrize("text", CHAINS)
def test_payloads_of_a_wrong_size_are_refused(text: str) -> None:
    """Neither a byte short nor a byte more is decoded."""
    base, values = pair(5000, "float32")
    link = Link(text, base)
    payload = link.encode(values)
    for wrong in (payload[:-1], memoryview(bytes(payload) + b"\0")):
        with pytest.raises(PayloadMismatch):
            link.decode(wrong, values)
        with pytest.raises(PayloadMismatch):
            link.receiver.accumulate(wrong, 0, np.zeros(5000, np.float32), 1.0)


def test_a_chain_works_in_two_slices_of_memory() -> None:
    """The longest chain takes 4 MiB for the largest slice, and the pieces it works on, once for a thread."""
    base, values = pair(1 << 19, "float32")
    peaks: list[int] = []

    def work() -> None:
        residuals = MemoryResiduals()
        link = Link("delta | feedback | rotate | lloyd:2", base, residuals=residuals)
        out = memoryview(bytearray(link.sender.encoded_size(values.size)))
        got = np.empty_like(values)
        tracemalloc.start()
        for _ in range(2):
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            encoded = link.sender.encode(raw(values), 0, out)
            link.receiver.decode(out[: encoded.nbytes], 0, raw(got))
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
        tracemalloc.stop()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    kept = 2 << 20  # the residual itself, which belongs to the publisher
    assert peaks[0] - kept < 8 << 20
    assert peaks[1] < 2 << 20


# --- feedback --------------------------------------------------------------------------------------------


def updates(rounds: int, count: int) -> list[Floats]:
    """Heavy-tailed changes, others in each round."""
    rng = np.random.default_rng(3)
    return [
        (0.01 * rng.standard_normal(count) * np.exp(rng.standard_normal(count))).astype(np.float32)
        for _ in range(rounds)
    ]


def error_of_the_sum(text: str, rounds: int, count: int = 50_000) -> float:
    """Relative mean square error of the sum of what was received."""
    base = np.zeros(count, np.float32)
    residuals = MemoryResiduals()
    meant, got = np.zeros(count), np.zeros(count)
    for update in updates(rounds, count):
        link = Link(text, base, residuals=residuals)
        got += numbers(link.decode(link.encode(update), update), "float32")
        meant += update
        link.acknowledge()
    return float(np.mean((got - meant) ** 2) / np.mean(meant**2))


@pytest.mark.parametrize(
    ("chain", "bound"),
    [
        ("nf4", 1.5e-3),
        ("uniform", 1.5e-3),
        ("int8", 4e-5),
        ("rotate | lloyd:3", 3.5e-3),
        ("rotate | lloyd:2", 1.3e-2),
    ],
)
@pytest.mark.parametrize("delta", ["", "delta | "])
def test_errors_do_not_add_up(chain: str, bound: float, delta: str) -> None:
    """After 20 rounds the sum of what was received is ten times closer to what was meant than without."""
    without = error_of_the_sum(f"{delta}{chain}", 20)
    with_feedback = error_of_the_sum(f"{delta}feedback | {chain}", 20)
    assert with_feedback < bound
    assert with_feedback < without / 10


@pytest.mark.parametrize("dtype", FLOATS)
def test_feedback_is_for_every_float(dtype: str) -> None:
    """What 20 messages of the same values lose in all is about what one of them loses without feedback."""
    base, _ = pair(4096, dtype)
    residuals = MemoryResiduals()
    got = np.zeros(4096)
    for _ in range(20):
        link = Link("feedback | nf4", base, dtype, residuals)
        got += numbers(link.decode(link.encode(base), base), dtype)
        link.acknowledge()
    one = Link("nf4", base, dtype)
    once = numbers(one.decode(one.encode(base), base), dtype) - numbers(base, dtype)
    assert np.sqrt(np.mean((got - 20 * numbers(base, dtype)) ** 2)) < 2 * np.sqrt(np.mean(once**2))


@pytest.mark.parametrize("text", [f"feedback | {chain}" for chain in LOSSY_CHAINS if "|" not in chain])
def test_a_message_sent_again_has_the_same_bytes(text: str) -> None:
    """Whatever was noted before, each encoding of a message starts from the residuals of the last one."""
    base, values = pair(20_000, "float32")
    residuals = MemoryResiduals()
    first = Link(text, base, residuals=residuals)
    first.encode(values)
    first.acknowledge()
    second = Link(text, base, residuals=residuals)
    payloads = [bytes(second.encode(values)) for _ in range(2)]
    second.seal()
    payloads.append(bytes(second.encode(values)))
    begun_anew = Link(text, base, residuals=residuals)
    payloads.append(bytes(begun_anew.encode(values)))
    assert len(set(payloads)) == 1
    assert payloads[0] != bytes(Link(text.removeprefix("feedback | "), base).encode(values))


def test_a_slice_without_change_and_residual_is_left_out() -> None:
    """With feedback, what the last message left out is sent even where nothing changed since."""
    base, values = pair(5000, "float32")
    residuals = MemoryResiduals()
    text = "delta | feedback | nf4"
    first = Link(text, base, residuals=residuals)
    assert first.encode(base.copy()).nbytes == 0
    assert first.encode(values).nbytes > 0
    first.acknowledge()
    second = Link(text, base, residuals=residuals)
    assert second.encode(base.copy()).nbytes > 0


@settings(max_examples=30, deadline=None)
@given(
    values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=300),
    base=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=300, max_size=300),
)
def test_any_values_make_a_delta(values: list[float], base: list[float]) -> None:
    """Whatever the two are, the difference comes back to within its last bit."""
    new = np.array(values, np.float32)
    old = np.array(base, np.float32)[: new.size]
    link = Link("delta | none", old)
    got = numbers(link.decode(link.encode(new), new), "float32")
    scale = np.maximum(np.abs(new.astype(np.float64)), np.abs(old.astype(np.float64)))
    assert (np.abs(got - new) <= 2e-7 * scale + 1e-44).all()
