"""The entropy coder of the codecs: Huffman codes of at most 12 bits for bytes, in streams of 4096 symbols.

    payload = mode (1 byte), then
        RAW:      the symbols as they are
        CONSTANT: the symbol that all of them are
        CODED:    the smallest and the largest symbol that occurs (1 byte each), the code length of each
                  symbol from the one to the other (4 bits each, the first in the low half), the size of
                  each stream in bytes (uint16 little-endian), the streams

Strategy. A stream holds the codes of 4096 symbols (the last stream: of the rest). The first symbol's code
lies in the lowest bits of the first byte, each code with its first bit uppermost, and one bit that is set
closes the stream. A decoder starts at that bit and goes down: the next bits are then the uppermost of a
word, a table of all values of 12 bits gives up to three symbols at once, and it writes them from the last to
the first. As streams begin anywhere and need nothing of one another, a processor decodes eight of them at
the same time, and numpy all of them. ``RAW`` is chosen where codes would not save a 64th, which is not worth
the time.

The bytes are the same from the compiled kernels (kernels/huffman_*.c) and from numpy.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from tensorbus.errors import PayloadMismatch

from .floats import Bytes, as_bytes
from .kernels import declaring, native, pointer
from .prefix_code import LONGEST, SYMBOLS_A_LOOKUP, Lengths, Table, canonical, code_lengths, is_complete
from .scratch import PIECE

STREAM = 4096
"""Symbols of a stream."""

RAW, CONSTANT, CODED = range(3)

_AT_ONCE = 512
"""Streams that numpy decodes at the same time."""


def bound(count: int) -> int:
    """Bytes of payload for ``count`` symbols at most."""
    return count + 1


def encode(symbols: Bytes, out: memoryview) -> int:
    """Write the payload of ``symbols``, fewer than 2³², into ``out``, which has room for ``bound`` of them.

    Returns:
        bytes of the payload.
    """
    if library := native():
        written: int = _prototyped(library).tb_huffman_encode(pointer(symbols), symbols.size, pointer(out))
        return written
    return _encode(symbols, as_bytes(out))


def decode(payload: memoryview, count: int, out: Bytes) -> None:
    """Decode the ``count`` symbols of ``payload`` into ``out``, which has room for just them.

    Raises:
        PayloadMismatch: the payload is no coding of ``count`` symbols; ``out`` is then undefined.
    """
    if out.size != count:
        raise ValueError(f"room for {out.size} symbols, where there are {count}")
    if library := native():
        if _prototyped(library).tb_huffman_decode(pointer(payload), payload.nbytes, count, pointer(out)) < 0:
            raise _malformed(payload.nbytes, count)
        return
    try:
        _decode(as_bytes(payload), count, out)
    except _Malformed:
        raise _malformed(payload.nbytes, count) from None


class _Malformed(Exception):
    """The payload is no coding of that many symbols."""


def _malformed(nbytes: int, count: int) -> PayloadMismatch:
    return PayloadMismatch(f"{nbytes} bytes of entropy-coded payload are no coding of {count} symbols")


@lru_cache(maxsize=1)
def _prototyped(library: ctypes.CDLL) -> ctypes.CDLL:
    long, address = ctypes.c_int64, ctypes.c_void_p
    with declaring:
        for function, arguments in (
            (library.tb_huffman_encode, [address, long, address]),
            (library.tb_huffman_decode, [address, long, long, address]),
        ):
            function.argtypes, function.restype = arguments, long
    return library


def _streams(count: int) -> int:
    return -(-count // STREAM)


# --- encoding in numpy -------------------------------------------------------------------------------


def _encode(symbols: Bytes, out: Bytes) -> int:
    count = symbols.size
    counts = np.zeros(256, np.int64)
    for start in range(0, count, PIECE):
        counts += np.bincount(symbols[start : start + PIECE], minlength=256)
    used = np.flatnonzero(counts)
    if used.size == 1:
        out[:2] = CONSTANT, used[0]
        return 2
    if used.size:
        lengths = code_lengths(counts)
        nibbles = _nibbles(lengths[used[0] : used[-1] + 1])
        head = 3 + nibbles.size + 2 * _streams(count)
        bits = int(lengths @ counts)
        if head + bits // 8 + _streams(count) < count - count // 64:
            out[:3] = CODED, used[0], used[-1]
            out[3 : 3 + nibbles.size] = nibbles
            return _write_streams(symbols, lengths, out[3 + nibbles.size : head], out, head)
    out[0] = RAW
    out[1 : 1 + count] = symbols
    return 1 + count


def _nibbles(lengths: Lengths) -> Bytes:
    even = np.append(lengths, np.zeros(lengths.size % 2, np.uint8))
    return even[::2] | even[1::2] << np.uint8(4)


def _write_streams(symbols: Bytes, lengths: Lengths, directory: Bytes, out: Bytes, at: int) -> int:
    """Write the streams from ``out[at]`` on, and their sizes; the end of the last."""
    _, codes = canonical(lengths)
    sizes = np.empty(_streams(symbols.size), np.dtype("<u2"))
    for start in range(0, symbols.size, PIECE):
        piece = symbols[start : start + PIECE]
        coded, piece_sizes = _coded(piece, lengths, codes)
        out[at : at + coded.size] = coded
        at += coded.size
        sizes[start // STREAM : start // STREAM + piece_sizes.size] = piece_sizes
    directory[:] = sizes.view(np.uint8)
    return at


def _coded(
    symbols: Bytes, lengths: Lengths, codes: npt.NDArray[np.uint64]
) -> tuple[Bytes, npt.NDArray[np.uint64]]:
    """The streams of at most ``PIECE`` symbols, and the size of each."""
    streams = _streams(symbols.size)
    bits = np.zeros(streams * STREAM, np.uint64)
    bits[: symbols.size] = lengths[symbols]
    code = np.zeros(streams * STREAM, np.uint64)
    code[: symbols.size] = codes[symbols]
    for _ in range(2):
        # Two neighbours become one code, and again: four symbols in at most 48 bits.
        code = code[::2] | code[1::2] << bits[::2]
        bits = bits[::2] + bits[1::2]
    # The bit that closes a stream is one more code.
    code = np.append(code.reshape(streams, -1), np.ones((streams, 1), np.uint64), axis=1)
    ends = np.cumsum(bits.reshape(streams, -1), axis=1)
    sizes = ends[:, -1] // 8 + 1
    starts = np.cumsum(sizes) - sizes
    places = np.append(np.zeros((streams, 1), np.uint64), ends, axis=1) + 8 * starts[:, None]
    return _packed(code.reshape(-1), places.reshape(-1), int(sizes.sum())), sizes


def _packed(codes: npt.NDArray[np.uint64], places: npt.NDArray[np.uint64], nbytes: int) -> Bytes:
    """Bytes with each code at its place, counted in bits; gaps between codes are less than 8 bits."""
    shifts = places % 64
    # A code begins in every word, as none has more than 48 bits; only the last that does can reach beyond.
    firsts = np.flatnonzero(np.diff(places // 64, prepend=np.uint64(1 << 63)))
    words = np.zeros(firsts.size + 1, np.dtype("<u8"))
    words[:-1] = np.bitwise_or.reduceat(codes << shifts, firsts)
    lasts = np.append(firsts[1:], codes.size) - 1
    words[1:] |= codes[lasts] >> np.uint64(1) >> (np.uint64(63) - shifts[lasts])
    return words.view(np.uint8)[:nbytes]


# --- decoding in numpy -------------------------------------------------------------------------------


def _decode(payload: Bytes, count: int, out: Bytes) -> None:
    mode = int(payload[0]) if payload.size else -1
    if mode == RAW and payload.size == 1 + count:
        out[:] = payload[1:]
    elif mode == CONSTANT and payload.size == 2 and count:
        out.fill(payload[1])
    elif mode == CODED and count:
        _decode_coded(payload, count, out)
    else:
        raise _Malformed


def _decode_coded(payload: Bytes, count: int, out: Bytes) -> None:
    if payload.size < 3 or payload[1] >= payload[2]:
        raise _Malformed
    first, last = int(payload[1]), int(payload[2])
    directory = 3 + (last - first + 2) // 2
    streams = directory + 2 * _streams(count)
    if payload.size < streams:
        raise _Malformed
    nibbles = payload[3:directory]
    lengths = np.zeros(258, np.uint8)
    lengths[first : first + 2 * nibbles.size : 2] = nibbles & 15
    lengths[first + 1 : first + 1 + 2 * nibbles.size : 2] = nibbles >> 4
    # The half that is left over, of an odd number of lengths, is 0.
    if lengths[last + 1] or not lengths[first] or not lengths[last] or not is_complete(lengths[:256]):
        raise _Malformed
    sizes = payload[directory:streams].view(np.dtype("<u2")).astype(np.int64)
    ends = streams + np.cumsum(sizes)
    if ends[-1] != payload.size or not sizes.all() or not payload[ends - 1].all():
        raise _Malformed
    table = Table(lengths[:256])
    for start in range(0, sizes.size, _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        symbols = out[start * STREAM : (start + _AT_ONCE) * STREAM]
        _decode_streams(payload, ends[part] - sizes[part], ends[part], table, symbols)


def _decode_streams(
    payload: Bytes, begins: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], table: Table, out: Bytes
) -> None:
    """Decode the streams between ``begins`` and ``ends``, in lockstep; the last may be a short one."""
    # Unaligned words of 32 bits, one from each byte on. Bits are counted from the payload's first, and those
    # before it and behind it are zeros.
    padded = np.concatenate([np.zeros(2, np.uint8), payload, np.zeros(4, np.uint8)])
    words = np.ndarray(payload.size + 2, np.dtype("<u4"), padded, strides=(1,))

    def next_bits(position: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        lowest = np.maximum(position + (16 - LONGEST), 0)
        return words[lowest >> 3].astype(np.int64) >> (lowest & 7) & ((1 << LONGEST) - 1)

    # The bit that closes a stream is the highest that is set.
    position = 8 * (ends - 1) + np.frexp(payload[ends - 1].astype(np.float64))[1] - 1
    symbols = np.empty((begins.size, STREAM), np.uint8)
    flat = symbols.reshape(-1)
    left = np.full(begins.size, STREAM)
    left[-1] = out.size - STREAM * (begins.size - 1)
    first = np.arange(begins.size) * STREAM
    threes = np.arange(-1, -1 - SYMBOLS_A_LOOKUP, -1)
    while (lagging := np.flatnonzero(left >= SYMBOLS_A_LOOKUP)).size:
        place, rest, base = position[lagging], left[lagging], first[lagging]
        for _ in range(int(rest.min()) // SYMBOLS_A_LOOKUP):
            index = next_bits(place)
            flat[(base + rest)[:, None] + threes] = table.symbols[index]
            place -= table.bits[index]
            rest -= table.counts[index]
        position[lagging], left[lagging] = place, rest
    while (lagging := np.flatnonzero(left)).size:
        index = next_bits(position[lagging])
        left[lagging] -= 1
        flat[first[lagging] + left[lagging]] = table.symbols[index, 0]
        position[lagging] -= table.first_bits[index]
    if not np.array_equal(position, 8 * begins):
        raise _Malformed
    out[:] = flat[: out.size]
