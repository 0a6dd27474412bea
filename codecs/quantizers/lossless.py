"""``lossless``: every bit as it was, in fewer bytes; 10.6 of 16 bits for the weights of a model in bfloat16.

    payload = for each group of 262,144 numbers, for each of its planes, the first to the last:
              size in bytes (uint32), and the plane as codecs/huffman.py codes it

A number of k bytes has k planes. The upper 16 bits of the number are turned left by one bit; plane 0 is then
the highest byte of each number, plane 1 the next, and so on down. Plane 0 of bfloat16 and float32 is the
exponent, which takes few values; plane 1 holds the sign and the head of the mantissa. The planes below are
noise, which is stored as it is, or zeros where the numbers were of a narrower dtype once, which take no room.

Whether a plane is worth coding is judged by 1024 of its bytes, evenly spaced (or all, if there are fewer):
it is if two of them are equal at least 5/4 times as often as two bytes of noise are.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from tensorbus.codecs import huffman
from tensorbus.codecs.base import Accumulator, Encoded, Quantizer
from tensorbus.codecs.dtypes import DType
from tensorbus.codecs.floats import QUANTISABLE, as_bytes, element_count
from tensorbus.codecs.kernels import declaring, native, pointer
from tensorbus.codecs.kernels.numbers import DTYPE_NUMBERS, NON_FINITE, sum_number
from tensorbus.codecs.scratch import scratch
from tensorbus.codecs.values import accumulate
from tensorbus.errors import NonFiniteValues, PayloadMismatch

Bytes = npt.NDArray[np.uint8]

GROUP = 1 << 18
"""Numbers whose planes are coded together, from the beginning of the slice on; as in kernels/planes.c."""

SAMPLES = 1024
HEAD = 4


class Lossless(Quantizer):
    """Byte planes and an entropy coder; NaN, Inf, -0.0 and denormals come back as they were, too.

    What does not shrink takes at most 5 bytes more for each plane of a group.
    """

    name = "lossless"
    fixed_size = False
    exact = True
    blocksize = 4096
    grain = GROUP

    def config(self) -> dict[str, object]:
        return {"name": self.name}

    def accepts(self, dtype: DType) -> bool:
        return dtype.name in QUANTISABLE

    def encoded_size(self, count: int, dtype: DType) -> int:
        groups = -(-count // GROUP)
        return dtype.itemsize * (count + groups * (HEAD + huffman.bound(0)))

    def encode(self, source: memoryview, dtype: DType, out: memoryview) -> Encoded:
        count = element_count(source, dtype)
        room = out[: self.encoded_size(count, dtype)]
        if library := native():
            return Encoded(
                _prototyped(library).tb_planes_encode(
                    DTYPE_NUMBERS[dtype.name], pointer(source), count, pointer(_memory()), pointer(room)
                )
            )
        original, at = as_bytes(source), 0
        for start, stop in _groups(count):
            numbers = original[start * dtype.itemsize : stop * dtype.itemsize]
            for plane in _split(numbers.reshape(-1, dtype.itemsize)):
                coded = room[at + HEAD :]
                size = huffman.encode(plane, coded) if _promising(plane) else _store(plane, coded)
                as_bytes(room)[at : at + HEAD] = np.array([size], "<u4").view(np.uint8)
                at += HEAD + size
        return Encoded(at)

    def decode(self, payload: memoryview, dtype: DType, out: memoryview) -> None:
        count = element_count(out, dtype)
        if library := native():
            result = _prototyped(library).tb_planes_decode(
                DTYPE_NUMBERS[dtype.name],
                pointer(payload),
                payload.nbytes,
                count,
                pointer(_memory()),
                pointer(out),
            )
            if result < 0:
                raise _malformed(payload, count)
            return
        target = as_bytes(out)
        for start, stop, planes in _planes(payload, dtype, count):
            numbers = target[start * dtype.itemsize : stop * dtype.itemsize]
            _join(planes, numbers.reshape(-1, dtype.itemsize))

    def accumulate(self, payload: memoryview, dtype: DType, accumulator: Accumulator, weight: float) -> None:
        count = accumulator.size
        if library := native():
            result = _prototyped(library).tb_planes_accumulate(
                DTYPE_NUMBERS[dtype.name],
                pointer(payload),
                payload.nbytes,
                count,
                pointer(_memory()),
                sum_number(accumulator),
                pointer(accumulator),
                weight,
            )
            if result == NON_FINITE:
                raise NonFiniteValues("the payload holds NaN or Inf")
            if result < 0:
                raise _malformed(payload, count)
            return
        for start, stop, planes in _planes(payload, dtype, count):
            numbers = np.empty((stop - start, dtype.itemsize), np.uint8)
            _join(planes, numbers)
            accumulate(numbers.reshape(-1), dtype, accumulator[start:stop], weight)

    def cut(self, payload: memoryview, dtype: DType, count: int, start: int, stop: int) -> memoryview:
        at = begin = 0
        for first, _ in _groups(min(stop, count)):
            begin = at if first == start else begin
            for _ in range(dtype.itemsize):
                at += HEAD + int.from_bytes(payload[at : at + HEAD], "little")
        if at > payload.nbytes:
            raise _malformed(payload, count)
        # What stands behind the last group is found out when that is decoded.
        return payload[begin:] if stop == count else payload[begin:at]


def _memory() -> npt.NDArray[np.uint64]:
    """The 512 KiB that kernels/planes.c works in."""
    return scratch("planes", 1 << 16, np.uint64)


def _groups(count: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, GROUP):
        yield start, min(start + GROUP, count)


def _malformed(payload: memoryview, count: int) -> PayloadMismatch:
    return PayloadMismatch(f"lossless payload of {payload.nbytes} bytes is none of {count} elements")


# --- the same in numpy -----------------------------------------------------------------------------------


def _planes(payload: memoryview, dtype: DType, count: int) -> Iterator[tuple[int, int, Bytes]]:
    """The groups (start, stop) and their planes, each a row."""
    at = 0
    for start, stop in _groups(count):
        planes = np.empty((dtype.itemsize, stop - start), np.uint8)
        for plane in planes:
            head = payload[at : at + HEAD]
            size = int.from_bytes(head, "little")
            at += HEAD + size
            if head.nbytes < HEAD or at > payload.nbytes:
                raise _malformed(payload, count)
            huffman.decode(payload[at - size : at], plane.size, plane)
        yield start, stop, planes
    if at != payload.nbytes:
        raise _malformed(payload, count)


def _split(numbers: Bytes) -> Iterator[Bytes]:
    """The planes of numbers, which are rows of bytes."""
    upper = numbers[:, -2:].copy().view("<u2")[:, 0]
    upper = upper << np.uint16(1) | upper >> np.uint16(15)
    yield (upper >> np.uint16(8)).astype(np.uint8)
    yield upper.astype(np.uint8)
    for column in range(numbers.shape[1] - 3, -1, -1):
        yield np.ascontiguousarray(numbers[:, column])


def _join(planes: Bytes, numbers: Bytes) -> None:
    """Fill ``numbers``, rows of bytes, from their planes."""
    upper = planes[0].astype(np.uint16) << np.uint16(8) | planes[1]
    upper = upper >> np.uint16(1) | upper << np.uint16(15)
    numbers[:, -2:] = upper.astype("<u2").view(np.uint8).reshape(-1, 2)
    for column, plane in enumerate(planes[:1:-1]):
        numbers[:, column] = plane


def _promising(plane: Bytes) -> bool:
    samples = plane[:: max(1, plane.size // SAMPLES)][:SAMPLES]
    seen = np.bincount(samples)
    equal = int((seen * (seen - 1)).sum())
    return 4 * 256 * equal > 5 * samples.size * (samples.size - 1)


def _store(plane: Bytes, out: memoryview) -> int:
    out[0] = huffman.RAW
    as_bytes(out)[1 : 1 + plane.size] = plane
    return 1 + plane.size


@lru_cache(maxsize=1)
def _prototyped(library: ctypes.CDLL) -> ctypes.CDLL:
    number, long, address = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
    payload = [number, address, long, long, address]
    with declaring:
        for function, arguments in (
            (library.tb_planes_encode, [number, address, long, address, address]),
            (library.tb_planes_decode, [*payload, address]),
            (library.tb_planes_accumulate, [*payload, number, address, ctypes.c_double]),
        ):
            function.argtypes, function.restype = arguments, long
    return library
