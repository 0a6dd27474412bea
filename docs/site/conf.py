"""How the user guide is built from docs/: `make docs`. Options are those of Sphinx, MyST and Furo."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))

import cli_reference
import http_reference
from tensorbus import __version__

project = "Tensorbus"
project_copyright = "the contributors of Tensorbus"
release = __version__
version = __version__

extensions = ["myst_parser", "sphinx.ext.githubpages"]
root_doc = "index"
exclude_patterns = ["site"]
nitpicky = True  # with -W: a link that leads nowhere fails the build

myst_heading_anchors = 4  # made as GitHub makes them, so that the same links work in both places

html_theme = "furo"
html_title = f"Tensorbus {__version__}"
html_static_path = ["static"]
html_css_files = ["guide.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False

# Pages whose text is made of the real thing; in docs/ there is a short stand-in for readers of the sources.
GENERATED: dict[str, Callable[[], str]] = {
    "cli-reference": cli_reference.page,
    "http-reference": http_reference.page,
}

_SECTION = re.compile(r"^## (?P<caption>.+)\n(?P<text>(?:(?!^## ).*\n?)*)", re.M)
_ENTRY = re.compile(r"^- \[[^\]]+\]\((?P<page>[^)#:]+)\.md\)", re.M)


def _write(app: Sphinx, page: str, source: list[str]) -> None:
    """Fill in the generated pages, and give the list of pages in the index to the navigation."""
    if page in GENERATED:
        source[0] = GENERATED[page]()
    elif page == root_doc:
        source[0] += "".join(
            "\n```{toctree}\n:hidden:\n:caption: "
            + section["caption"]
            + "\n\n"
            + "\n".join(pages)
            + "\n```\n"
            for section in _SECTION.finditer(source[0])
            if (pages := [entry["page"] for entry in _ENTRY.finditer(section["text"])])
        )


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _write)
