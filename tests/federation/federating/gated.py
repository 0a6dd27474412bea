"""A tensor of which the second half has to be waited for, so that its message stays open."""

from __future__ import annotations

import threading

import numpy as np

from tensorbus.codecs.dtypes import DTYPES
from tensorbus.codecs.item import Item, ItemSpec

COUNT = 6 << 20
"""Elements: 24 MiB, 25 frames."""
PATIENCE = 15.0
"""Seconds after which a gate that is still closed is a failure."""


class Gated(Item):
    """float32 tensor "w": ``fill`` and up by 1; the second half is to be had only when the gate is open."""

    def __init__(self, fill: float, gate: threading.Event) -> None:
        self.spec = ItemSpec("w", DTYPES["float32"], (COUNT,))
        self._values = np.arange(COUNT, dtype=np.float32) + np.float32(fill)
        self._gate = gate

    def read(self, offset: int, count: int) -> memoryview:
        """Waits, if need be."""
        if offset + count > COUNT // 2:
            assert self._gate.wait(PATIENCE)
        return self._values[offset : offset + count].view(np.uint8).data
