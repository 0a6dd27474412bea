"""What the stages ``clip`` and ``gauss`` need to know of a whole message: its norm, and a secret of its own.

A publisher has one of each for a message, in the `CodecContext`, for as long as it may send that message
again: so the same message has the same bytes whenever a part of it is sent anew, and two messages never have
the same noise.
"""

from __future__ import annotations

import hashlib
import math
import secrets

import numpy as np
import numpy.typing as npt

from tensorbus.errors import TensorbusError

from .base import Accumulator, Encoded, SliceCodec
from .dtypes import DTYPES
from .scratch import pieces, scratch

Floats = npt.NDArray[np.float32]


SEED_BYTES = 32


class Privacy:
    """The norm of one message, and the seed of its noise.

    Attributes:
        limit: what ``clip`` bounds the norm to.
        seed: random bytes, drawn here if none are given. Who knows them can take the noise off: they are not
            sent, written or logged.
    """

    def __init__(self, limit: float, seed: bytes | None = None) -> None:
        self.limit = limit
        self.seed = seed if seed is not None else secrets.token_bytes(SEED_BYTES)
        self._norm: float | None = None

    @property
    def measured(self) -> bool:
        """Whether the norm is known."""
        return self._norm is not None

    @property
    def norm(self) -> float:
        """L2 norm of the change, over all tensors of the message."""
        if self._norm is None:
            raise TensorbusError("a message is to be clipped, and its norm was not measured")
        return self._norm

    def measure(self, squares: list[float]) -> None:
        """Note the norm: the root of the sum of ``squares``."""
        self._norm = math.sqrt(math.fsum(squares))

    def generator(self, name: str, offset: int) -> np.random.Generator:
        """Random numbers for the slice of the item ``name`` that begins at element ``offset``."""
        found = hashlib.blake2b(f"{offset}/{name}".encode(), key=self.seed, digest_size=16)
        key = np.frombuffer(found.digest(), np.uint64)
        return np.random.Generator(np.random.Philox(key=key))

    def fingerprint(self) -> bytes:
        """Tells messages of different noise apart; says nothing about it."""
        return hashlib.blake2b(b"fingerprint", key=self.seed, digest_size=16).digest()


class SquaresCodec(SliceCodec):
    """Encodes to nothing, and adds up the squares of what it is given: float32 values, summed in float64."""

    fixed_size = True
    blocksize = 1

    def __init__(self) -> None:
        self.dtype = DTYPES["float32"]
        self.squares: list[float] = []

    def config(self) -> dict[str, object]:
        return {"name": "squares"}

    def encoded_size(self, count: int) -> int:
        return 0

    def encode(self, source: memoryview, offset: int, out: memoryview) -> Encoded:
        values = np.frombuffer(source, np.float32)
        for start, stop in pieces(values.size):
            wide = scratch("squares", stop - start, np.float64)
            np.copyto(wide, values[start:stop])
            self.squares.append(float(np.dot(wide, wide)))
        return Encoded(0)

    def decode(self, payload: memoryview, offset: int, out: memoryview) -> None:
        raise AssertionError("squares are not decoded")

    def accumulate(self, payload: memoryview, offset: int, accumulator: Accumulator, weight: float) -> None:
        raise AssertionError("squares are not decoded")
