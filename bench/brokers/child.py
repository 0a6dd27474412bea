"""Child processes that speak JSON lines, and their end of the talk."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import IO, Self, cast

Said = dict[str, object]


class Child:
    """A process of the benchmark; use as a context manager, which ends it."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        self.pid = self._process.pid

    def hear(self) -> Said:
        """Its next line."""
        line = cast("IO[str]", self._process.stdout).readline()
        if not line:
            raise RuntimeError(f"a process of the benchmark ended with exit code {self._process.wait()}")
        return cast("Said", json.loads(line))

    def go(self) -> None:
        """Let it begin."""
        said = cast("IO[str]", self._process.stdin)
        said.write("go\n")
        said.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in self._process.stdin, self._process.stdout:
            if pipe is not None:
                pipe.close()


_used_before = 0.0


def tell(**said: object) -> None:
    """One line to the driver, with the processor time since it was told that all is prepared."""
    global _used_before
    print(json.dumps(said | {"cpu": time.process_time() - _used_before}), flush=True)
    if "ready" in said:
        _used_before = time.process_time()


def ready() -> None:
    """Tell the driver that all is prepared, and wait until it says go."""
    tell(ready=True)
    sys.stdin.readline()
