"""Child: a process that the demo started, whose events are read from its stdout."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, cast

from tensorbus.errors import TensorbusError

Event = dict[str, object]
Told = Callable[[str, Event], None]
"""Called with the name of a process and one event of it."""

LINE_LIMIT = 1 << 20
LAST_LINES = 15
STOP_PATIENCE = 10.0
"""Seconds that a process gets to end by itself after SIGTERM."""


class ProcessFailed(TensorbusError):
    """A process of the demo ended before its work was done."""

    slug: ClassVar[str] = "process-failed"


class Child:
    """One process and what it said.

    Args:
        name: shown to people.
        arguments: for this Python, e.g. ``["-m", "tensorbus", "serve"]``.
        log: file that its stderr is written to.
        told: hears each event.
    """

    def __init__(self, name: str, arguments: Sequence[str], log: Path, told: Told) -> None:
        self.name = name
        self._arguments = arguments
        self._log = log
        self._told = told
        self._process: Process | None = None
        self._last: deque[str] = deque(maxlen=LAST_LINES)

    @property
    def pid(self) -> int | None:
        """Its process id; None before it is started."""
        return None if self._process is None else self._process.pid

    async def start(self, threads: int = 1) -> None:
        """Start it, in a session of its own, so that Ctrl-C is the launcher's alone to deal with."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *self._arguments,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            limit=LINE_LIMIT,
            start_new_session=True,
            env=environment(threads),
        )

    async def run(self) -> None:
        """Read what it says until it ends.

        Raises:
            ProcessFailed: it ended with another exit code than 0; its last words are in the message.
        """
        assert self._process is not None
        async with asyncio.TaskGroup() as readers:
            readers.create_task(self._read_events())
            readers.create_task(self._read_log())
        code = await self._process.wait()
        if code:
            raise ProcessFailed(self._post_mortem(code))

    async def stop(self) -> None:
        """End it, politely first; nothing if it has ended or was never started."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        _signal(process, signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), STOP_PATIENCE)
        except TimeoutError:
            _signal(process, signal.SIGKILL)
            await process.wait()

    async def _read_events(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        async for line in self._process.stdout:
            try:
                event: object = json.loads(line)
            except ValueError:
                event = None
            if isinstance(event, dict):
                self._told(self.name, cast(Event, event))
            else:
                self._last.append(line.decode(errors="replace").rstrip())

    async def _read_log(self) -> None:
        assert self._process is not None and self._process.stderr is not None
        with self._log.open("w", encoding="utf-8") as log:
            async for line in self._process.stderr:
                text = line.decode(errors="replace")
                log.write(text)
                log.flush()
                self._last.append(text.rstrip())

    def _post_mortem(self, code: int) -> str:
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        words = "\n".join(f"    {line}" for line in self._last if line) or "    (it said nothing)"
        return f"{self.name} {how}. Its last words, all of them in {self._log}:\n{words}"


def environment(threads: int) -> dict[str, str]:
    """The environment of a child: no network, no bars on stderr, a fair share of the cores."""
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }


def _signal(process: Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except ProcessLookupError:
        pass  # it has just ended by itself
