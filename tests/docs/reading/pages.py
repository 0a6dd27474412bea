"""The pages, and the blocks, links and headings in them, as a Markdown parser finds them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[3]
_PARSER = MarkdownIt("commonmark").enable("table")


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code: what it is written in, as the page says, and where it stands."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """Every page that a user may read: the ones at the root, and all of docs/."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, also those within lists."""
    for token in _PARSER.parse(page.read_text()):
        if token.type == "fence":
            line = token.map[0] + 1 if token.map else 0
            yield Block(page, line, token.info.strip().split(" ")[0], token.content)


def code_spans(page: Path) -> Iterator[str]:
    """Everything that stands between backticks within a line."""
    for token in _inline(page):
        if token.type == "code_inline":
            yield token.content


def links(page: Path) -> Iterator[str]:
    """The targets of links and images."""
    for token in _inline(page):
        target = token.attrGet("href") or token.attrGet("src")
        if target is not None:
            yield str(target)


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    found: dict[str, int] = {}
    tokens = _PARSER.parse(page.read_text())
    for opening, content in pairwise(tokens):
        if opening.type == "heading_open":
            words = "".join(child.content for child in content.children or ())
            slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
            found[slug] = found.get(slug, -1) + 1
    return {f"{slug}-{again}" for slug, more in found.items() for again in range(1, more + 1)} | found.keys()


def _inline(page: Path) -> Iterator[Token]:
    for token in _PARSER.parse(page.read_text()):
        yield from token.children or ()
