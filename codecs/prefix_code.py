"""Prefix codes for bytes: optimal lengths of at most 12 bits, and the codes and tables that follow from them.

The code is canonical: a shorter code stands before a longer one, and of equal lengths the smaller symbol
comes first, so the lengths say it all. kernels/prefix_code.c computes the same.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LONGEST = 12
"""Bits of a code at most, and of the index of the table that decodes them."""

SYMBOLS_A_LOOKUP = 3

Lengths = npt.NDArray[np.uint8]


def code_lengths(counts: npt.NDArray[np.int64]) -> Lengths:
    """The code length of each symbol (0 where it does not occur) that makes the coded data shortest.

    The package-merge algorithm (Larmore & Hirschberg 1990): of the list of a level, leaves and pairs of the
    level below in rising order of weight, the cheapest 2n - 2 are taken, and with a pair what it is made
    of; a symbol's code is as long as its leaf was taken often. Of equal weights a leaf goes before a pair,
    and a smaller symbol before a larger one.

    Args:
        counts: shape (256,); at least two symbols occur.
    """
    order = np.argsort(counts, kind="stable")
    order = order[counts[order] > 0]
    leaves: list[int] = counts[order].tolist()
    weights: list[int] = []
    is_pair: list[npt.NDArray[np.bool_]] = []
    for _ in range(LONGEST):
        pairs = [a + b for a, b in zip(weights[::2], weights[1::2], strict=False)]
        # The sort is stable, so leaves stay before pairs of the same weight.
        merged = [(weight, False) for weight in leaves] + [(weight, True) for weight in pairs]
        merged.sort(key=_weight)
        weights = [weight for weight, _ in merged]
        is_pair.append(np.array([pair for _, pair in merged]))
    lengths = np.zeros(256, np.uint8)
    take = 2 * order.size - 2
    for level in reversed(is_pair):
        pairs_taken = int(np.count_nonzero(level[:take]))
        lengths[order[: take - pairs_taken]] += 1
        take = 2 * pairs_taken
    return lengths


def _weight(entry: tuple[int, bool]) -> int:
    return entry[0]


def is_complete(lengths: Lengths) -> bool:
    """Whether every sequence of bits is one of codes, and no code is too long: what decoders rely on."""
    used = lengths[lengths > 0].astype(np.int64)
    if not used.size or int(used.max()) > LONGEST:
        return False
    return int((1 << (LONGEST - used)).sum()) == 1 << LONGEST


def canonical(lengths: Lengths) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.uint64]]:
    """The symbols in the order of their codes, and the code of each of the 256 symbols (0 without one)."""
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    used = lengths[order].astype(np.int64)
    # Filled up to the longest length, codes are the running sum of what the codes before them cover.
    filled = np.concatenate([[0], np.cumsum(1 << (LONGEST - used))[:-1]])
    codes = np.zeros(256, np.uint64)
    codes[order] = filled >> (LONGEST - used)
    return order, codes


class Table:
    """What the next ``LONGEST`` bits stand for: the whole symbols in them, three at most.

    Attributes, each with an entry for every value of those bits:
        symbols: shape (4096, 3), the first symbol first; those beyond ``counts`` are arbitrary.
        counts: how many symbols, 1 to 3.
        bits: how many bits they take together.
        first_bits: how many bits the first of them takes.
    """

    def __init__(self, lengths: Lengths) -> None:
        """``lengths`` are those of a complete code."""
        order, _ = canonical(lengths)
        one = np.repeat(order, 1 << (LONGEST - lengths[order].astype(np.int64)))
        bits = lengths[one].astype(np.int64)
        index = np.arange(1 << LONGEST)
        self.symbols = np.zeros((1 << LONGEST, SYMBOLS_A_LOOKUP), np.uint8)
        self.symbols[:, 0] = one
        self.first_bits = bits
        self.counts = np.ones(1 << LONGEST, np.int64)
        self.bits = bits.copy()
        for nth in range(1, SYMBOLS_A_LOOKUP):
            following = (index << self.bits) % (1 << LONGEST)
            fits = (self.counts == nth) & (self.bits + bits[following] <= LONGEST)
            self.symbols[fits, nth] = one[following[fits]]
            self.counts[fits] += 1
            self.bits[fits] += bits[following[fits]]
