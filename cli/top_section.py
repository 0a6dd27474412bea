"""Section: one table of `tensorbus top`, of which as much is shown as there is room for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

BAR = 16
"""Columns of a progress bar."""

Cell = str | Text | ProgressBar


@dataclass(frozen=True, slots=True)
class Section:
    """A table of which only the first rows may be shown.

    Attributes:
        columns: its head; the first one is the title. Those that begin with ``>`` are set flush right. The
            last ones are left out first where there is no room for all.
        count: of rows that there are at the broker; not fewer than those here.
    """

    columns: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]
    count: int

    def height(self, rows: int) -> int:
        """Lines of the section with so many rows, an empty one behind it included."""
        return rows + 2 + (rows < self.count)

    def table(self, rows: int, width: int, title: int) -> Table:
        """The first ``rows`` of it, and a line that says how many are left out.

        Args:
            width: columns that there are.
            title: columns of the names, so that those of several sections are in line.
        """
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
        fitting = self._fitting(rows, width - title)
        for index, name in enumerate(self.columns[:fitting]):
            table.add_column(
                Text(name.removeprefix(">"), style="bold not dim" if index == 0 else "dim"),
                justify="right" if name.startswith(">") else "left",
                no_wrap=True,
                overflow="ellipsis",
                width=title if index == 0 else None,
            )
        for row in self.rows[:rows]:
            table.add_row(*row[:fitting])
        if rows < self.count:
            table.add_row(Text(f"… and {self.count - rows:,} more", style="dim"))
        return table

    def title(self, rows: int) -> int:
        """Columns that the names of the first ``rows`` take."""
        return self._width(0, rows)

    def _fitting(self, rows: int, room: int) -> int:
        """How many columns there is room for, two spaces between them."""
        for index in range(1, len(self.columns)):
            room -= self._width(index, rows) + 2
            if room < 0:
                return index
        return len(self.columns)

    def _width(self, index: int, rows: int) -> int:
        cells = (row[index] for row in self.rows[:rows])
        widths = (BAR if isinstance(cell, ProgressBar) else cell_len(str(cell)) for cell in cells)
        return max(cell_len(self.columns[index].removeprefix(">")), *widths)
