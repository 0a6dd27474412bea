"""What a process and its children have used, as Linux counts it."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Self

_TICK = os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """``pid`` and its descendants, as far as they live."""
    found = [pid]
    for parent in found:
        try:
            threads = list(Path(f"/proc/{parent}/task").iterdir())
            for thread in threads:
                found += [int(child) for child in (thread / "children").read_text().split()]
        except OSError:
            continue
    return found


def cpu_seconds(pid: int) -> float:
    """Processor time of the process, its children, and children of theirs that have ended."""
    ticks = 0
    for each in tree(pid):
        try:
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(map(int, fields[11:15]))
    return ticks / _TICK


def memory(pid: int, kind: str = "Pss") -> int:
    """Bytes of memory of all of them: Pss counts what is shared with others by parts, Rss in full."""
    total = 0
    for each in tree(pid):
        try:
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind + ":"))
    return total


class Peak:
    """The largest memory seen while it is open, looked at ten times a second; a context manager.

    Attributes:
        rss, pss: bytes.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.rss = self.pss = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.rss = max(self.rss, memory(self._pid, "Rss"))
            self.pss = max(self.pss, memory(self._pid, "Pss"))
            if self._over.wait(0.1):
                return
