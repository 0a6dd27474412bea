"""A process of a benchmark, and what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import IO, Any, cast


class Process:
    """A child that speaks JSON lines."""

    def __init__(self, *command: str, quiet: bool = False) -> None:
        self._child = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
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

    def go(self) -> None:
        """Let it begin."""
        said = cast(IO[str], self._child.stdin)
        said.write("go\n")
        said.flush()

    def end(self) -> None:
        """Terminate it if it has not ended by itself."""
        if self._child.poll() is None:
            self._child.terminate()
        self._child.wait()
