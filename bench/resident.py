"""Resident memory of Linux processes, in bytes, as the kernel counts it."""

from __future__ import annotations

from pathlib import Path


def _status(field: str, process: int | str) -> int:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"/proc/{process}/status has no {field}")


def now(process: int | str = "self") -> int:
    """Resident size (VmRSS)."""
    return _status("VmRSS", process)


def peak(process: int | str = "self") -> int:
    """Largest resident size (VmHWM) since the process began or `forget_peak` was called."""
    return _status("VmHWM", process)


def forget_peak() -> int:
    """Let this process' peak start anew, and return its resident size now."""
    Path("/proc/self/clear_refs").write_text("5")
    return now()
