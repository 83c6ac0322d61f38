"""A browser window at the page, as the browser tests hold it."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from PIL import Image

from tests.app.serving import Served

WAIT_MS = 60_000
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}
FILE_INPUT = "#nb-photo input[type=file]"
CLEAR = "#nb-photo button[aria-label='Clear'], #nb-photo button[aria-label='Remove Image']"


class Visitor:
    """A browser window at the page, and what it met on the way."""

    def __init__(self, browser: Any, served: Served, query: str = "", **options: Any) -> None:
        self.served = served
        self.context = browser.new_context(**({"viewport": DESKTOP} | options))
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT_MS)
        self.errors: list[str] = []
        self.hosts: set[str | None] = set()
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._hear)
        self.page.on("request", lambda request: self.hosts.add(urlparse(request.url).hostname))
        self.page.goto(served.url + query)
        self.page.wait_for_selector(".nb-done, .nb-problem")
        # Files are offered once the page has a session of its own.
        self.page.wait_for_selector(".nb-take, .nb-problem")

    def _hear(self, message: Any) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def mark(self) -> None:
        """Remember the status line that is shown, to tell it from the next one."""
        self.page.eval_on_selector(".nb-status", "line => line.dataset.old = '1'")

    def wait(self, kind: str = "done") -> str:
        """The next status line of a kind."""
        line = self.page.wait_for_selector(f".nb-{kind}:not([data-old])")
        return str(line.inner_text())

    def upload(self, path: Path) -> None:
        if self.page.query_selector(FILE_INPUT) is None:
            self.page.click(CLEAR)
        self.mark()
        self.page.set_input_files(FILE_INPUT, str(path))

    def picture(self, selector: str) -> Image.Image:
        """The picture that an `<img>` really holds."""
        source = self.page.get_attribute(selector, "src")
        return Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1])))

    def texts(self, selector: str) -> list[str]:
        return [element.inner_text() for element in self.page.query_selector_all(selector)]

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - innerWidth"))
