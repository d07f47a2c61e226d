"""A real browser for tests: Chromium, started through Playwright's synchronous interface."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ALL_TESTS = "UPSCALE_OPT_ALL_TESTS"
"""Set to 1, this makes tests fail that would be skipped for want of a browser."""

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def chromium() -> Iterator[Any]:
    """A Playwright ``Browser``; without one the test is skipped, or fails in CI."""
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _without("Playwright is not installed")
    if program is None:
        _without("there is no Chromium on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(_OPTIONS))
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """A page that was opened in a context of its own, and what it did.

    Attributes:
        page: Playwright's ``Page``.
        requests: the addresses it asked for.
        complaints: errors, and whatever it wrote to the console.
    """

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.page = browser.new_context(**options).new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("details.segment[open] .panel h3")


def _without(reason: str) -> None:
    if os.environ.get(ALL_TESTS) == "1":
        pytest.fail(f"{reason}, and {ALL_TESTS} is set")
    pytest.skip(reason)
