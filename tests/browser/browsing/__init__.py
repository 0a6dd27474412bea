"""A headless Chromium for tests of the broker's page."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright

WIDE = (1280, 900)
AUDIT = Path(__file__).with_name("audit.js").read_text()
"""A script that gives a list of what is wrong with a page."""


def chromium() -> str:
    """Where it is; without it tests are skipped, but not in CI."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("CI tests the broker's page, and needs a browser for it: apt-get install chromium")
        pytest.skip("chromium is not installed")
    return found


@dataclass
class Tab:
    """One page of the browser.

    Attributes:
        complaints: errors and warnings in its console, and exceptions of its scripts.
        asked: addresses of all requests that it made.
    """

    page: Page
    complaints: list[str] = field(default_factory=list[str])
    asked: list[str] = field(default_factory=list[str])


@dataclass
class Tabs:
    """Opens pages."""

    browser: Browser
    opened: list[Tab] = field(default_factory=list[Tab])

    async def open(
        self, url: str, *, dark: bool = False, size: tuple[int, int] = WIDE, token: str | None = None
    ) -> Tab:
        """A page in a session of its own, which knows ``token`` already."""
        context = await self.browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if dark else "light"
        )
        context.set_default_timeout(20_000)
        if token is not None:
            await context.add_init_script(f"sessionStorage.setItem('tensorbus.token', '{token}')")
        tab = Tab(await context.new_page())

        def heard(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                tab.complaints.append(message.text)

        tab.page.on("console", heard)
        tab.page.on("pageerror", lambda error: tab.complaints.append(str(error)))
        tab.page.on("request", lambda request: tab.asked.append(request.url))
        self.opened.append(tab)
        await tab.page.goto(url)
        return tab


@asynccontextmanager
async def running_browser() -> AsyncGenerator[Tabs]:
    """A browser of its own, without a window; the test is skipped where there is none."""
    path = chromium()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        try:
            yield Tabs(browser)
        finally:
            await browser.close()
