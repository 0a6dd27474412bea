"""/docs: the API's description as a page that needs nothing from elsewhere."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tensorbus.bus.server.docs_page import FILES
from tensorbus.bus.testing import running_broker


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a broker of its own."""
    async with running_broker(tmp_path) as url, aiohttp.ClientSession(url) as session:
        yield session


async def test_the_page_and_all_that_it_asks_for_come_from_here(http: aiohttp.ClientSession) -> None:
    """Every file that the page names is served, with its media type; nothing is on another host."""
    async with http.get("/docs") as answer:
        assert answer.content_type == "text/html"
        page = await answer.text()
    named = set(re.findall(r'(?:src|href)="([^"]*)"', page))
    assert named == {f"docs/{name}" for name in FILES} | {"openapi.json"}
    for name, media_type in FILES.items():
        async with http.get(f"/docs/{name}") as answer:
            assert answer.status == 200
            assert answer.content_type == media_type
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert len(await answer.read()) == int(answer.headers["Content-Length"]) > 0
            etag = answer.headers["ETag"]
        async with http.get(f"/docs/{name}", headers={"If-None-Match": etag}) as answer:
            assert answer.status == 304


async def test_the_browser_is_told_to_run_nothing_else(http: aiohttp.ClientSession) -> None:
    """The content security policy allows no inline script or style and no other host; the page has none."""
    async with http.get("/docs") as answer:
        policy, page = answer.headers["Content-Security-Policy"], await answer.text()
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy and "http" not in policy and "*" not in policy
    assert not re.search(r"<script[^>]*>[^<]|<style| style=| on[a-z]+=", page)


async def test_the_bundle_reads_openapi_3_1(http: aiohttp.ClientSession) -> None:
    """Swagger UI before 5.0 only says that it cannot render such a document."""
    async with http.get("/docs/swagger-ui-bundle.js") as answer:
        found = re.search(r'PACKAGE_VERSION:"(\d+)\.', await answer.text())
    assert found is not None and int(found[1]) >= 5


@pytest.mark.parametrize("name", ["index.html", "..%2f__init__.py", "swagger-ui.css.map", "%2e%2e%2fdocs"])
async def test_no_other_file_is_served(http: aiohttp.ClientSession, name: str) -> None:
    """The files are named one by one; there is no way from an address into a directory."""
    async with http.get(f"/docs/{name}") as answer:
        assert answer.status == 404
        assert answer.content_type == "application/problem+json"
