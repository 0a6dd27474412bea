"""Room on the disk: asked for before it is needed, and laid out ahead of large files."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

from tensorbus.errors import StorageFull

_ALLOWANCE = 64 << 20
"""Bytes that may be written, by all files together, before the disk is asked again."""
_SHARE = 8
"""Never more of them than this part of what is free."""
_TRUST = 0.1
"""Seconds for which an answer is believed: others write to the disk as well."""

AHEAD = 64 << 20
"""Bytes that a file which grows fast is laid out in at a time."""
_KEEP_SIZE = 1


class Room:
    """What is free on the disk of a folder, less what is kept in reserve. Any thread may ask.

    A file that grows by a megabyte at a time would ask a thousand times a second; so an answer holds for a
    while, for all files together.
    """

    def __init__(self, path: Path, reserve: int) -> None:
        self._path = path
        self._reserve = reserve
        self._lock = threading.Lock()
        self._allowed = 0
        self._until = 0.0

    def take(self, size: int) -> None:
        """``size`` bytes are about to be written. Raises StorageFull, OSError."""
        with self._lock:
            self._allowed -= size
            if self._allowed >= 0 and time.monotonic() < self._until:
                return
            left = self.check(size)
            self._allowed = min(_ALLOWANCE, left // _SHARE)
            self._until = time.monotonic() + _TRUST

    def check(self, size: int) -> int:
        """How many bytes are left beyond ``size`` more and the reserve. Raises StorageFull, OSError."""
        disk = os.statvfs(self._path)
        free = disk.f_bavail * disk.f_frsize
        if free < size + self._reserve:
            raise StorageFull(
                f"{self._path}: {free} bytes are free, {size} are needed, {self._reserve} kept in reserve; "
                "delete messages, or free space on the disk of the data directory"
            )
        return free - size - self._reserve


def _fallocate() -> Callable[[int, int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    try:
        call = ctypes.CDLL(None).fallocate64
    except (AttributeError, OSError):
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return cast("Callable[[int, int, int, int], int]", call)


_CALL = _fallocate()


def lay_out(fd: int, start: int, size: int) -> bool:
    """Find blocks for the next ``size`` bytes of a file at once, which costs less than one by one.

    The file stays as long as it is. False where the system or the disk will not; then they are found later.
    """
    return _CALL is not None and _CALL(fd, _KEEP_SIZE, start, size) == 0
