"""A static page in headless Chromium: what it shows, says on its console, and asks for.

Chromium comes from the system's packages; Playwright drives it and brings no browser of its own.
The browser is told that it is offline, and every request but the page itself fails.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
INSTALL = "apt-get install chromium fonts-liberation"
PHONE_PX = 390  # specified: the width of most phones now, in CSS pixels
DESKTOP_PX = 1280
WAIT_MS = 20_000  # guessed: a page of one file takes far less


@dataclass(frozen=True, slots=True)
class PageReport:
    """What became of a page.

    console: "error: TEXT" and the like, uncaught exceptions as "exception: TEXT". requests: the
    address of everything that was asked for beside the page itself, files on the disk and web
    sockets included, data: and blob: not. text: what is visible. width_px: of the laid-out page;
    more than the window's width means that it scrolls sideways. screenshot: PNG of the whole page.
    pdf: the page as printed.
    """

    console: list[str]
    requests: list[str]
    text: str
    width_px: int
    screenshot: bytes
    pdf: bytes


OpenPage = Callable[[Path, int], PageReport]
"""open_page(file, width_px): below 600 pixels the page is laid out as on a phone."""


def find_chromium() -> str:
    """Chromium on PATH. Without one the test is skipped, and fails where CI is set."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        message = f"no Chromium on PATH; install it: {INSTALL}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


def pages() -> Iterator[OpenPage]:
    """Start Chromium, give what opens pages in it, end it.

    Playwright's event loop runs in this thread in between: nothing else can use asyncio here.
    """
    chromium = find_chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        try:
            yield lambda file, width_px: _open(browser, file, width_px)
        finally:
            browser.close()


def _open(browser, file: Path, width_px: int) -> PageReport:
    phone = width_px < 600
    context = browser.new_context(
        viewport={"width": width_px, "height": 844},
        is_mobile=phone,
        offline=True,
        device_scale_factor=2 if phone else 1,
    )
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    address = file.resolve().as_uri()
    console: list[str] = []
    requests: list[str] = []

    def on_route(route) -> None:
        url = route.request.url
        if url == address:
            route.continue_()
        else:
            route.abort()

    def on_request(request) -> None:
        if request.url != address and not request.url.startswith(("data:", "blob:")):
            requests.append(request.url)

    page.on("console", lambda message: console.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: console.append(f"exception: {error}"))
    page.on("request", on_request)
    page.on("websocket", lambda socket: requests.append(socket.url))
    context.route(lambda url: not url.startswith(("data:", "blob:")), on_route)
    try:
        page.goto(address, wait_until="networkidle")
        return PageReport(
            console=console,
            requests=requests,
            text=page.inner_text("body"),
            width_px=page.evaluate("document.documentElement.scrollWidth"),
            screenshot=page.screenshot(full_page=True),
            pdf=page.pdf(),
        )
    finally:
        context.close()
