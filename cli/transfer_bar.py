"""A progress bar for a person; for a program, silence."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as RichProgress

if TYPE_CHECKING:
    from tensorbus.bus.client import Progress

QUIET_SECONDS = 1.0
"""A transfer that is done sooner shows no bar."""


class TransferBar:
    """Shows one transfer on stderr if that is a terminal; give it as ``progress=``."""

    def __init__(self, what: str) -> None:
        self._console = Console(stderr=True)
        self._what = what
        self._started = time.monotonic()
        self._bar: RichProgress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, progress: Progress) -> None:
        if self._bar is None:
            if not self._console.is_terminal or time.monotonic() - self._started < QUIET_SECONDS:
                return
            self._bar = self._begin()
        self._bar.update(
            self._task,
            completed=progress.bytes_on_wire,
            total=progress.total_on_wire,
            item=progress.item or "",
        )

    def _begin(self) -> RichProgress:
        bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[item]}", style="dim"),
            console=self._console,
            transient=True,
        )
        self._task = bar.add_task(self._what, total=None, item="")
        bar.start()
        return bar
