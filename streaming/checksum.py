"""CRC-32C of any buffer, at the speed of the instruction."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import cast

import google_crc32c

# google_crc32c takes `bytes`, and of all other buffers only those that need no release, which are those of
# ctypes. So a writable buffer is lent to it as a ctypes array, in a few sizes whose types are made once: no
# byte is copied, and the lock of the interpreter, which it lets go, is fought for as rarely as can be.
_LENT = tuple((size, ctypes.c_char * size) for size in (512 << 10, 128 << 10, 32 << 10))

# What cannot be lent is copied in pieces that stay in the L2 cache between the copy and the checksum.
_PIECE = 64 << 10

# The package says that it is typed, but this function has no annotations.
_extend = cast(
    Callable[[int, bytes | ctypes.Array[ctypes.c_char]], int],
    google_crc32c.extend,  # pyright: ignore[reportUnknownMemberType]
)


def extend(crc: int, data: bytes | bytearray | memoryview) -> int:
    """The CRC-32C of everything that ``crc`` covers, followed by ``data`` (a contiguous view of bytes)."""
    if isinstance(data, bytes):
        return _extend(crc, data)
    view = memoryview(data)
    whole = view.obj
    if isinstance(whole, bytes) and len(whole) == view.nbytes:
        return _extend(crc, whole)
    start, end = 0, view.nbytes
    if not view.readonly:
        for size, kind in _LENT:
            while end - start >= size:
                crc = _extend(crc, kind.from_buffer(view, start))
                start += size
    while start < end:
        crc = _extend(crc, view[start : start + _PIECE].tobytes())
        start += _PIECE
    return crc
