"""Promises of the entropy coder: symbols come back, every kernel gives the same bytes, garbage is refused."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorbus.codecs import huffman
from tensorbus.codecs.kernels import forced, usable
from tensorbus.codecs.prefix_code import LONGEST, Table, canonical, code_lengths, is_complete
from tensorbus.errors import PayloadMismatch

Symbols = npt.NDArray[np.uint8]

GUARD = 0xA5


KERNELS = usable()

KINDS = ("equal", "two", "uniform", "narrow", "normal", "wide", "skewed", "longest", "runs")


def symbols_of(kind: str, count: int, seed: int = 0) -> Symbols:
    """Sequences that differ in what they ask of a code."""
    random = np.random.default_rng(seed)
    made = {
        "equal": lambda: np.full(count, 77),
        "two": lambda: random.integers(0, 2, count) * 255,
        "uniform": lambda: random.integers(0, 256, count),
        "narrow": lambda: random.integers(100, 163, count),
        "normal": lambda: np.rint(random.standard_normal(count) / 0.319) + 128,
        "wide": lambda: np.clip(np.rint(random.standard_normal(count) * 25) + 128, 0, 255),
        "skewed": lambda: np.where(random.random(count) < 0.999, 3, random.integers(0, 256, count)),
        # Counts that double from symbol to symbol want codes far longer than the limit.
        "longest": lambda: np.minimum(random.geometric(0.5, count), 40) * 6,
        "runs": lambda: np.arange(count) // 5000 % 3 + 9,
    }
    return made[kind]().astype(np.uint8)


def encode(symbols: Symbols) -> bytes:
    """The payload, made in a buffer that is seen to keep its end."""
    room = huffman.bound(symbols.size)
    out = np.full(room + 16, GUARD, np.uint8)
    nbytes = huffman.encode(symbols, out[:room].data)
    assert nbytes <= room
    assert (out[nbytes:] == GUARD).all(), "wrote beyond the payload"
    return out[:nbytes].tobytes()


def decode(payload: bytes, count: int) -> Symbols:
    """The symbols, between two guards that are seen to stay."""
    out = np.full(count + 32, GUARD, np.uint8)
    try:
        huffman.decode(memoryview(payload), count, out[16 : 16 + count])
    finally:
        assert (out[:16] == GUARD).all()
        assert (out[16 + count :] == GUARD).all(), "wrote beyond its place"
    return out[16 : 16 + count]


def outcome(payload: bytes, count: int) -> bytes | None:
    """What decoding gives; None if it is refused."""
    try:
        return decode(payload, count).tobytes()
    except PayloadMismatch:
        return None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 7, 63, 64, 65, 4095, 4096, 4097, 8 * 4096, 70_001])
def test_symbols_come_back_and_every_kernel_writes_the_same_bytes(kind: str, count: int) -> None:
    """Whatever wrote the payload, numpy or C with any instructions, each of them reads it."""
    symbols = symbols_of(kind, count)
    with forced("numpy"):
        payload = encode(symbols)
    for kernels in KERNELS:
        with forced(*kernels):
            assert encode(symbols) == payload
            assert np.array_equal(decode(payload, count), symbols)


@settings(max_examples=60, deadline=None)
@given(
    symbols=st.one_of(
        st.binary(max_size=300),
        st.lists(st.tuples(st.integers(0, 255), st.integers(1, 5000)), max_size=12).map(
            lambda runs: b"".join(bytes([symbol]) * length for symbol, length in runs)
        ),
    )
)
def test_any_bytes_come_back(symbols: bytes) -> None:
    """Any sequence at all, of any length."""
    given_ = np.frombuffer(symbols, np.uint8)
    payloads: set[bytes] = set()
    for kernels in KERNELS:
        with forced(*kernels):
            payloads.add(payload := encode(given_))
            assert decode(payload, given_.size).tobytes() == symbols
    assert len(payloads) == 1


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_million_symbols_come_within_two_percent_of_their_entropy(kernels: tuple[str, str | None]) -> None:
    """Codes of normally distributed values take little more than the entropy, headers and all."""
    symbols = symbols_of("normal", 1 << 20)
    shares = np.bincount(symbols, minlength=256) / symbols.size
    entropy = -float(np.sum(shares[shares > 0] * np.log2(shares[shares > 0])))
    with forced(*kernels):
        payload = encode(symbols)
        assert np.array_equal(decode(payload, symbols.size), symbols)
    assert 8 * len(payload) / symbols.size < 1.02 * entropy


def test_sizes_where_no_code_is_needed() -> None:
    """Equal symbols take two bytes; symbols that no code makes smaller take one byte more than they are."""
    assert len(encode(symbols_of("equal", 1_000_000))) == 2
    assert len(encode(symbols_of("uniform", 100_000))) == 100_001
    assert [len(encode(np.arange(count, dtype=np.uint8))) for count in (0, 1, 2, 3)] == [1, 2, 3, 4]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_truncation_and_every_other_count_is_refused(
    kind: str, kernels: tuple[str, str | None]
) -> None:
    """A payload that is too short or too long, or of another number of symbols, is malformed."""
    with forced(*kernels):
        for count in (2, 600, 4096 + 30):
            payload = encode(symbols_of(kind, count))
            for size in {0, 1, 2, len(payload) // 2, len(payload) - 1} - {len(payload)}:
                assert outcome(payload[:size], count) is None
            assert outcome(payload + b"\x01", count) is None
            if payload[0] != huffman.CONSTANT:
                for other in (0, 1, count - 1, count + 1, 2 * count):
                    assert outcome(payload, other) is None


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    count=st.sampled_from([1, 40, 700, 4100, 9000]),
    flips=st.lists(st.tuples(st.integers(0, 2**31), st.integers(0, 7)), min_size=1, max_size=4),
)
def test_flipped_bits_harm_nothing_and_all_kernels_agree(
    kind: str, count: int, flips: list[tuple[int, int]]
) -> None:
    """Damage is refused or decodes to other symbols, never outside the buffer, the same way everywhere."""
    payload = bytearray(encode(symbols_of(kind, count)))
    for at, bit in flips:
        payload[at % len(payload)] ^= 1 << bit
    outcomes: list[bytes | None] = []
    for kernels in KERNELS:
        with forced(*kernels):
            outcomes.append(outcome(bytes(payload), count))
    assert outcomes == [outcomes[0]] * len(outcomes)


@settings(max_examples=200, deadline=None)
@given(body=st.binary(max_size=200), count=st.integers(0, 5000), coded=st.booleans())
def test_garbage_is_refused_or_harmless(body: bytes, count: int, coded: bool) -> None:
    """Random bytes never decode to more than the count says, nor differently with another kernel."""
    payload = bytes([huffman.CODED]) + body if coded else body
    outcomes: list[bytes | None] = []
    for kernels in KERNELS:
        with forced(*kernels):
            outcomes.append(outcome(payload, count))
    assert outcomes == [outcomes[0]] * len(outcomes)


@settings(max_examples=100, deadline=None)
@given(
    streams=st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=10), rest=st.integers(1, 4096)
)
def test_a_valid_code_before_garbage_streams_is_harmless(streams: list[bytes], rest: int) -> None:
    """Random bytes under a real code: mostly too short for their symbols, never a way out of the buffer."""
    with forced("numpy"):
        whole = encode(symbols_of("longest", 3 * 4096))
    head = whole[: 3 + (whole[2] - whole[1] + 2) // 2]
    sizes = np.array([len(stream) for stream in streams], "<u2").tobytes()
    payload, count = head + sizes + b"".join(streams), 4096 * (len(streams) - 1) + rest
    outcomes: list[bytes | None] = []
    for kernels in KERNELS:
        with forced(*kernels):
            outcomes.append(outcome(payload, count))
    assert outcomes == [outcomes[0]] * len(outcomes)


def test_room_for_another_count_is_an_error_of_the_caller() -> None:
    """The buffer must have room for exactly the symbols that are decoded."""
    with pytest.raises(ValueError, match="room"):
        huffman.decode(memoryview(encode(symbols_of("normal", 100))), 100, np.empty(99, np.uint8))


def optimal_bits(counts: list[int], longest: int) -> int:
    """Bits of the best code with lengths up to ``longest``, by trying all that Kraft's sum allows."""
    ordered = sorted(counts, reverse=True)
    best: dict[tuple[int, int], float] = {}

    def cheapest(index: int, budget: int) -> float:
        if index == len(ordered):
            return 0 if budget >= 0 else math.inf
        if budget <= 0:
            return math.inf
        if (index, budget) not in best:
            best[index, budget] = min(
                ordered[index] * length + cheapest(index + 1, budget - (1 << (longest - length)))
                for length in range(1, longest + 1)
            )
        return best[index, budget]

    return int(cheapest(0, 1 << longest))


@settings(max_examples=50, deadline=None)
@given(counts=st.lists(st.integers(1, 10**6), min_size=2, max_size=9))
def test_code_lengths_are_optimal(counts: list[int]) -> None:
    """No prefix code of at most 12 bits codes these counts with fewer bits."""
    all_counts = np.zeros(256, np.int64)
    all_counts[30 : 30 + len(counts)] = counts
    lengths = code_lengths(all_counts)
    assert is_complete(lengths)
    assert int(lengths @ all_counts) == optimal_bits(counts, LONGEST)


def test_codes_are_prefix_free_in_canonical_order() -> None:
    """Codes rise with their lengths and symbols, none begins another, and the table undoes them."""
    counts = np.bincount(symbols_of("wide", 50_000), minlength=256)
    lengths = code_lengths(counts)
    order, codes = canonical(lengths)
    texts = [format(int(codes[symbol]), f"0{lengths[symbol]}b") for symbol in order]
    assert texts == sorted(texts)
    assert all(not b.startswith(a) for a, b in pairwise(texts))
    table = Table(lengths)
    for symbol, text in zip(order, texts, strict=True):
        at = int(text.ljust(LONGEST, "0"), 2)
        assert (table.symbols[at, 0], table.first_bits[at]) == (symbol, len(text))
