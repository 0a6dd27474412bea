"""Board: the broker's status as a picture that fits a terminal of any size."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .output import size
from .top_reading import Part, printable
from .top_section import Section
from .top_sections import sections, span

LEAST_TITLE = 20
"""Columns of the names, in windows however narrow."""
NEARLY_FULL = 0.1
"""Share of the disk that is left when it is shown in red."""
UNLIMITED = 1 << 60
"""Bytes of room that a store says it has when nobody has set it a limit."""
BESIDE = 110
"""Columns from which on the disk stands beside the figures."""
LEAST = 2
"""Rows that a section gets before another one gets more of them."""


class Board:
    """Holds the newest status and how the connection is; draws itself into the room that it is given.

    Args:
        url: of the broker, for the head.
        fit: whether to show of lists only as much as the terminal has lines for; else all there is.
    """

    def __init__(self, url: str, status: dict[str, object], *, fit: bool) -> None:
        self._url = url
        self._fit = fit
        self._status = Part(status)
        self._heard = time.monotonic()
        self._lost: tuple[float, str] | None = None

    def show(self, status: dict[str, object], url: str) -> None:
        """This is how things stand now, as the broker at ``url`` says; that may be another one now."""
        self._url = url
        self._status = Part(status)
        self._heard = time.monotonic()
        self._lost = None

    def lose(self, reason: str) -> None:
        """The connection is lost, for this reason; what was known stays to be seen."""
        self._lost = (self._lost[0] if self._lost else time.monotonic(), printable(reason))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The picture."""
        # By the broker's clock, as its times are, and going on between two events.
        at = self._status.time("at") or datetime.now(UTC)
        now = datetime.fromtimestamp(at.timestamp() + time.monotonic() - self._heard, UTC)
        head = self._head(now, options.max_width)
        found = sections(self._status, now)
        if self._fit:
            room = share_out(found, console.height - len(head))
        else:
            room = [len(section.rows) for section in found]
        titles = [section.title(rows) for section, rows in zip(found, room, strict=True) if rows]
        title = min(max(titles, default=0), max(LEAST_TITLE, options.max_width * 2 // 5))
        parts: list[RenderableType] = [*head]
        for section, rows in zip(found, room, strict=True):
            if rows:
                parts += [Text(), section.table(rows, options.max_width, title)]
        if not found:
            parts += [Text(), Text("Nothing is stored, and nobody is there yet.", style="dim")]
        yield Group(*parts)

    def _head(self, now: datetime, width: int) -> list[RenderableType]:
        broker, totals, rates = (self._status.part(name) for name in ("broker", "totals", "rates"))
        started = broker.time("started")
        up = "" if started is None else f"  up {span((now - started).total_seconds())}"
        you = self._status.part("you").text("name")
        title = Text(no_wrap=True, overflow="ellipsis")
        title.append("Tensorbus ", style="bold").append(broker.text("version"))
        title.append(f"  {self._url}{up}{f'  as {you}' if you else ''}", style="dim")
        clock = Text(f"{now.astimezone():%H:%M:%S}", style="dim")
        top = Table.grid(expand=True)
        top.add_column(ratio=1, no_wrap=True)
        top.add_column(justify="right", no_wrap=True)
        top.add_row(title, clock)
        lines: list[RenderableType] = [top]
        if self._lost is not None:
            since, reason = self._lost
            words = f"connection lost {span(time.monotonic() - since)} ago, trying again: {reason}"
            lines.append(Text(words, style="bold white on red", no_wrap=True, overflow="ellipsis"))
        if broker and not broker.flag("writable"):
            words = "the store is read-only: look at the disk and the broker's log, then restart it"
            lines.append(Text(words, style="bold red", no_wrap=True, overflow="ellipsis"))
        lines.append(_moving(totals, rates))
        lines += _beside(_trouble(totals), _disk(self._status.part("disk")), width)
        return lines


def share_out(found: Sequence[Section], lines: int) -> list[int]:
    """Rows for each section, so that all together take ``lines`` lines at the most.

    Each gets a few first, the first sections before the last; what is left goes to those that lack some.
    """
    rows = [0] * len(found)
    for most in (LEAST, 10**9):
        for index, section in enumerate(found):
            while rows[index] < min(most, len(section.rows)):
                before = section.height(rows[index]) if rows[index] else 0
                more = section.height(rows[index] + 1) - before
                # The last row takes the place of the line that says how many are left out.
                if more > lines:
                    break
                rows[index] += 1
                lines -= more
    return rows


def _moving(totals: Part, rates: Part) -> Text:
    def rate(name: str) -> str:
        found = rates.number(name)
        return "–" if found is None else f"{found:,.1f}"

    def moved(name: str) -> str:
        found = rates.number(name)
        return "–" if found is None else f"{size(int(found))}/s"

    words = Text(no_wrap=True, overflow="ellipsis")
    words.append(f"{totals.count('messages'):,}", style="bold").append(" messages, ")
    words.append(size(totals.count("bytes")), style="bold").append(f", {totals.count('topics'):,} topics   ")
    words.append("in ", style="dim").append(moved("received")).append("  out ", style="dim").append(
        moved("sent")
    )
    words.append("   published ", style="dim").append(f"{rate('messages')}/s")
    words.append("  delivered ", style="dim").append(f"{rate('deliveries')}/s")
    return words


def _trouble(totals: Part) -> Text:
    words = Text(no_wrap=True, overflow="ellipsis")
    for name, label, style in (
        ("ack_pending", "unsettled", ""),
        ("open_messages", "open", ""),
        ("redeliveries", "redelivered", "yellow"),
        ("dead", "dead", "red"),
        ("damaged", "damaged", "bold red"),
    ):
        count = totals.count(name)
        words.append(f"{label} ", style="dim").append(f"{count:,}  ", style=style if count else "dim")
    return words


def _disk(disk: Part) -> Table | None:
    free, whole = disk.number("free"), disk.number("size")
    if free is None or not whole or whole >= UNLIMITED:
        return None
    style = "red" if free / whole < NEARLY_FULL else ""
    bar = ProgressBar(total=whole, completed=whole - free, width=12, complete_style=style or "bar.complete")
    grid = Table.grid(padding=(0, 1))
    left = f"{size(int(free))} free of {size(int(whole))}"
    grid.add_row(Text("disk", style="dim"), bar, Text(left, style=style, no_wrap=True))
    return grid


def _beside(words: Text, more: Table | None, width: int) -> list[RenderableType]:
    """Both in one line where there is room for that."""
    if more is None:
        return [words]
    if width < BESIDE:
        return [words, more]
    grid = Table.grid(padding=(0, 1))
    grid.add_row(words, more)
    return [grid]
