"""The processes of a benchmark: a broker, an aggregator, and what they say and hold."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any, cast

SAMPLE = 0.02
"""Seconds between two looks at a process' memory."""


class Process:
    """A child that speaks JSON lines."""

    def __init__(self, *command: str, quiet: bool = False) -> None:
        self._child = subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if quiet else None,
            text=True,
        )
        self.pid = self._child.pid

    def hear(self) -> dict[str, Any]:
        """Its next line."""
        line = cast(IO[str], self._child.stdout).readline()
        if not line:
            raise RuntimeError(f"a process of the benchmark ended with exit code {self._child.wait()}")
        return cast("dict[str, Any]", json.loads(line))

    def end(self) -> None:
        """Terminate it if it has not ended by itself."""
        if self._child.poll() is None:
            self._child.terminate()
        self._child.wait()


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
