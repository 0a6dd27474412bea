"""The user guide: `make docs` builds it, and it needs nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from reading.pages import ROOT, anchors, links, pages
from tensorbus.bus.server import openapi
from tensorbus.cli.main import cli


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it: any warning is an error."""
    out = tmp_path_factory.mktemp("site")
    line = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "sphinx-build" in line)
    words = line.replace("build/docs", str(out)).split()[1:]
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", *words], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert "-W" in words and built.returncode == 0, built.stderr
    return out


def test_every_page_is_in_the_navigation(site: Path) -> None:
    """No page of docs/ is left out of the site, and each is linked from the first one."""
    index = (site / "index.html").read_text()
    for page in sorted((ROOT / "docs").rglob("*.md")):
        name = page.relative_to(ROOT / "docs").with_suffix(".html").as_posix()
        assert (site / name).is_file(), name
        assert f'href="{name}"' in index or name == "index.html", name


def test_no_page_asks_another_host_for_anything(site: Path) -> None:
    """Scripts, styles, fonts and images are all in the site; only links that a reader follows lead out."""
    for page in site.rglob("*.html"):
        told = page.read_text()
        for tag in re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", told):
            for found in re.finditer(r'(?:src|href)="([^"]*)"', tag):
                target = urlsplit(found[1])
                assert not target.netloc, f"{page.name}: {tag}"
                if target.path and target.scheme != "data":
                    assert (page.parent / unquote(target.path)).exists(), f"{page.name}: {tag}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", style.read_text()), style


def test_the_search_finds_what_stands_on_the_pages(site: Path) -> None:
    """The index of the search comes with the site, and knows the words of the generated pages too."""
    index = (site / "searchindex.js").read_text()
    for word in ("quorum", "cli-reference", "http-reference", "krum"):
        assert f'"{word}"' in index, word


def test_the_reference_has_every_command_and_every_request(site: Path) -> None:
    """What the program and the broker have is in the reference, because it is made of them."""
    told = (site / "cli-reference.html").read_text()
    for name in cli.list_commands(None):  # pyright: ignore[reportArgumentType] - it lists without a context
        assert f">tensorbus {name}<" in told, name
    told = (site / "http-reference.html").read_text()
    for path, methods in openapi.document()["paths"].items():  # pyright: ignore
        for method in methods:  # pyright: ignore
            assert f">{method.upper()} {path}<" in told, (method, path)  # pyright: ignore


def test_links_lead_somewhere_in_the_sources_too() -> None:
    """Read as plain files, each page's links to files and headings are right; others are whole addresses."""
    for page in pages():
        for link in links(page):
            parts = urlsplit(link)
            if parts.scheme:
                assert parts.scheme in ("http", "https") and "." in parts.netloc and " " not in link, link
                continue
            target = (page.parent / unquote(parts.path)) if parts.path else page
            assert target.exists(), f"{page}: {link}"
            if parts.fragment:
                assert unquote(parts.fragment) in anchors(target), f"{page}: {link}"
