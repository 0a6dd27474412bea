"""Tally: what writer and checker of a message count, and what the close frame repeats."""

from __future__ import annotations

import hashlib

from .frames import PRELUDE, Kind, encode_head
from .headers import Totals


class Tally:
    """Running totals of a message that is being written or read."""

    def __init__(self) -> None:
        self.frames = 0
        self.bytes = 0
        self.payload_bytes = 0
        self._digest = hashlib.sha256()

    def add(self, kind: Kind, prelude: bytes, size: int, payload_len: int) -> None:
        """Count one frame of ``size`` bytes in all."""
        self.frames += 1
        self.bytes += size
        self._digest.update(prelude)
        if kind == Kind.SLICE:
            self.payload_bytes += payload_len

    def add_head(self, kind: Kind, head: bytes, payload_len: int = 0) -> None:
        """Count one frame that is being written."""
        self.add(kind, head[: PRELUDE.size], len(head) + payload_len, payload_len)

    def digest(self) -> bytes:
        """SHA-256 over the preludes so far."""
        return self._digest.digest()

    def close(self, items: int, original_bytes: int, clipped: int) -> bytes:
        """The close frame of the message written so far; it is counted too."""
        totals = Totals(self.frames + 1, items, self.payload_bytes, original_bytes, clipped, self.digest())
        head = encode_head(Kind.CLOSE, totals.pack())
        self.add_head(Kind.CLOSE, head)
        return head
