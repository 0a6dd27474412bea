"""The processes of a benchmark: a broker, an aggregator, and what they say and hold."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from child import Process

SAMPLE = 0.02
"""Seconds between two looks at a process' memory."""


class Memory:
    """The largest anonymous memory of a process, by looking often; and its VmHWM, which misses nothing.

    A memory-mapped file counts in VmHWM as far as it is in the page cache, but is no anonymous memory.
    """

    def __init__(self, pid: int) -> None:
        self.anonymous = self.peak = 0
        self._status = Path(f"/proc/{pid}/status")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Look no more."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE):
            try:
                lines = self._status.read_text(encoding="ascii").splitlines()
            except OSError:
                return
            for line in lines:
                name, _, rest = line.partition(":")
                if name == "VmHWM":
                    self.peak = max(self.peak, int(rest.split()[0]) * 1024)
                elif name == "RssAnon":
                    self.anonymous = max(self.anonymous, int(rest.split()[0]) * 1024)


@contextmanager
def broker(data: Path) -> Generator[tuple[Process, str]]:
    """A broker of its own, and its URL."""
    process = Process("-m", "tensorbus", "serve", "--port", "0", "--data", str(data), "--json", quiet=True)
    try:
        yield process, str(process.hear()["url"])
    finally:
        process.end()


def aggregator(url: str, job: str, options: Sequence[str]) -> Process:
    """``tensorbus aggregate``, for one round."""
    command = ["aggregate", "--url", url, "--job", job, "--rounds", "1", "--json", *options]
    return Process("-m", "tensorbus", *command, quiet=True)


def until(process: Process, event: str, number: int) -> float:
    """When ``process`` told this event of this round, in seconds since the epoch."""
    while True:
        told = process.hear()
        if told["event"] == event and told["round"] == number:
            return datetime.fromisoformat(told["time"]).timestamp()


def settled() -> None:
    """Let what the disk still has to write settle a little, so that rows do not pay for each other."""
    time.sleep(1.0)
