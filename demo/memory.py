"""Memory: how far a process grows beyond what it held just before, as the kernel counts it.

``VmHWM`` in ``/proc/<pid>/status`` is the highest resident size a process ever had; writing 5 to
``/proc/<pid>/clear_refs`` sets it back to the present size. On systems without these files nothing is
measured, and the demo says so.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

KIB = 1024
_FIELD = re.compile(r"^(VmHWM|VmRSS):\s+(\d+) kB$", re.MULTILINE)


def resident(pid: int | str = "self") -> tuple[int, int] | None:
    """Present and highest resident size of a process in bytes; None where the system does not tell."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = {name: int(size) * KIB for name, size in _FIELD.findall(text)}
    if "VmRSS" not in found or "VmHWM" not in found:
        return None
    return found["VmRSS"], found["VmHWM"]


class PeakMeter:
    """Growth of one process from the moment it is made.

    Args:
        pid: the process, of the same user; ``"self"`` also gives memory that was freed back to the system
            first, so that the growth cannot hide in what the allocator keeps.
    """

    def __init__(self, pid: int | str = "self") -> None:
        self._pid = pid
        self._before: int | None = None
        if pid == "self":
            _trim()
        try:
            Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")
        except OSError:
            return
        sizes = resident(pid)
        self._before = None if sizes is None else sizes[0]

    def growth(self) -> int | None:
        """Bytes that the resident size rose at most above where it began; None if it cannot be told."""
        sizes = resident(self._pid)
        if self._before is None or sizes is None:
            return None
        return max(0, sizes[1] - self._before)


def _trim() -> None:
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        pass  # not glibc: the figure may then be too small by what the allocator kept
