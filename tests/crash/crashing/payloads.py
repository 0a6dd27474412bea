"""The payloads of a crash test: made from their key, so that a restarted process can make them again."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

from tensorbus.errors import FrameError
from tensorbus.streaming.frames import FrameParser, Kind
from tensorbus.streaming.raw import RawEncoder
from tensorbus.streaming.sequence import MessageChecker

KIB = 1 << 10
SIZES = (
    (10, 0),
    (30, KIB),
    (10, 60 * KIB),
    (10, 70 * KIB),
    (15, 300 * KIB),
    (15, 1536 * KIB),
    (10, 5000 * KIB),
)
"""Weights and sizes: what is kept in a row and what in a file, of one frame and of several."""
LARGEST = "-large-"
"""Part of the key of what is so large that the client library sends it as a resumable upload."""


def payload(key: str) -> bytes:
    """The bytes of a key; the same in every process."""
    chance = random.Random(key)
    if LARGEST in key:
        return chance.randbytes(8192 * KIB + chance.randint(1, 500 * KIB))
    weights, sizes = zip(*SIZES, strict=True)
    size: int = chance.choices(sizes, weights)[0]
    return chance.randbytes(size and chance.randint(size * 9 // 10, size))


def sha256(data: bytes) -> str:
    """In hex."""
    return hashlib.sha256(data).hexdigest()


def body(data: bytes) -> bytes:
    """A payload as a message body: frames."""
    encoder = RawEncoder({}, "application/octet-stream", len(data))
    parts = [encoder.open()]
    for head, part in encoder.slices(data):
        parts += [head, bytes(part)]
    return b"".join([*parts, encoder.close()])


def unpack(frames: bytes) -> bytes:
    """The payload in a message body.

    Raises:
        FrameError: it is not whole and right, as every receiver would find.
    """
    return b"".join(_slices(frames))


def _slices(frames: bytes) -> Iterator[bytes]:
    parser, checker = FrameParser(), MessageChecker()
    for frame in parser.feed(frames):
        checker.accept(frame)
        if frame.kind is Kind.SLICE:
            yield bytes(frame.payload)
    parser.finish()
    checker.finish()


__all__ = ["FrameError", "body", "payload", "sha256", "unpack"]
