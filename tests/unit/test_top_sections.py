"""What `tensorbus top` draws fits its terminal, and nothing that others wrote can take that over."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tensorbus.cli.top_board import Board, share_out
from tensorbus.cli.top_reading import Part
from tensorbus.cli.top_section import Section
from tensorbus.cli.top_sections import sections, span

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
ESCAPE = "\x1b]0;taken over\x07\x9b2J\r\n"


def status_with(text: str) -> dict[str, object]:
    """A status in which others chose every text."""
    return {
        "at": NOW.isoformat(),
        "broker": {"version": text, "writable": True},
        "you": {"name": text},
        "jobs": {
            "count": 1,
            "shown": [
                {
                    "job": text,
                    "state": text,
                    "round": 1,
                    "rounds": 2,
                    "up": text,
                    "down": text,
                    "sites": [{"site": text, "state": text, "reason": text, "metrics": {}}],
                    "history": [{"round": 1, "metrics": {text: 1.0}}],
                }
            ],
        },
        "transfers": {
            "count": 1,
            "shown": [{"direction": "upload", "topic": text, "site": text, "message": text}],
        },
        "brokers": {"count": 1, "shown": [{"url": text, "away": text}]},
        "topics": {"count": 1, "shown": [{"topic": text}]},
        "consumers": {"count": 1, "shown": [{"name": text, "filter": text}]},
        "codecs": [{"codec": text, "received": None, "sent": {"messages": 1}}],
        "quotas": {"count": 1, "shown": [{"name": text, "kind": text, "filter": text}]},
    }


def drawn(status: dict[str, object], columns: int, lines: int | None = None) -> str:
    """The picture as it goes to a terminal that understands colours."""
    console = Console(
        width=columns, height=lines or 25, force_terminal=True, color_system=None, legacy_windows=False
    )
    with console.capture() as captured:
        console.print(Board("http://127.0.0.1:8080", status, fit=lines is not None))
    return captured.get()


def test_no_text_of_others_reaches_the_terminal_as_a_command() -> None:
    """Control characters in names, reasons and metrics are dots on the screen."""
    picture = drawn(status_with(f"before{ESCAPE}after"), 200)
    assert "before·" in picture
    for letter in ("\x07", "\x1b", "\x9b", "\r"):
        assert letter not in picture


def test_markup_in_names_is_text() -> None:
    """``[red]`` is a name like any other."""
    assert "[red]x" in drawn(status_with("[red]x"), 200)


@pytest.mark.parametrize(
    "broken", [{}, {"jobs": 1}, {"topics": {"shown": [None, 3, {"topic": 4}]}, "codecs": "x"}]
)
def test_a_status_of_another_release_is_shown_as_far_as_it_goes(broken: dict[str, object]) -> None:
    """What is missing or of another kind is left out."""
    assert drawn(broken, 80).startswith("Tensorbus")


@given(
    counts=st.lists(st.integers(1, 60), max_size=7),
    more=st.integers(0, 100),
    lines=st.integers(0, 80),
)
def test_the_sections_fit(counts: list[int], more: int, lines: int) -> None:
    """All together never take more lines than there are; nothing is left out while there is room for it."""
    found = [Section(("X",), [("x",)] * count, count + more) for count in counts]
    rows = share_out(found, lines)
    used = sum(section.height(shown) for section, shown in zip(found, rows, strict=True) if shown)
    assert used <= lines
    needed = sum(section.height(len(section.rows)) for section in found)
    if needed <= lines:
        assert rows == counts


@given(columns=st.integers(20, 250), lines=st.integers(8, 60))
def test_the_picture_fits(columns: int, lines: int) -> None:
    """No line is wider than the terminal, and there are no more of them than it has."""
    picture = drawn(status_with("a-rather-long-name-of-something"), columns, lines).splitlines()
    assert len(picture) <= lines
    assert all(len(line) <= columns for line in picture)


def test_losses_are_drawn_by_round() -> None:
    """The first and the last loss, and the way between them."""
    rounds = [{"round": n, "metrics": {"loss": loss}} for n, loss in enumerate((4.0, 3.0, 2.0), 1)]
    job = {"job": "sft", "state": "open", "round": 4, "rounds": 9, "history": rounds}
    [jobs] = sections(Part({"jobs": {"count": 1, "shown": [job]}}), NOW)
    assert jobs.rows[0][4] == "█▅▁ 4 → 2"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (59, "59 s"),
        (61, "1 min 01 s"),
        (3599, "59 min"),
        (7500, "2 h 05 min"),
        (97200, "1 d 3 h"),
    ],
)
def test_lengths_of_time(seconds: float, words: str) -> None:
    """In the two largest units."""
    assert span(seconds) == words
