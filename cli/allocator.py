"""How the C library's allocator treats large buffers.

By default glibc maps every buffer of more than 128 KiB afresh and unmaps it when it is freed: each megabyte
that arrives is then paid for with a few hundred page faults, and receiving is several times slower. With a
higher threshold such buffers come from the heap and are used again.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

MMAP_THRESHOLD = 4 << 20
"""Bytes; above the largest buffer in which bodies travel."""
TRIM_THRESHOLD = 16 << 20
"""Bytes of free memory at the top of the heap that are kept rather than given back."""
ARENAS = 2
"""Heaps for all threads: each keeps free memory of its own, and the threads here allocate little."""


def keep_large_buffers() -> bool:
    """Set the thresholds for this process; False where the C library has no ``mallopt``.

    Call it before threads are started.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    options = (
        (_M_MMAP_THRESHOLD, MMAP_THRESHOLD),
        (_M_TRIM_THRESHOLD, TRIM_THRESHOLD),
        (_M_ARENA_MAX, ARENAS),
    )
    taken = [mallopt(option, value) == 1 for option, value in options]
    return all(taken)
