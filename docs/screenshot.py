"""Takes docs/images/report.png from a report, or docs/images/play.png from the page of `batchnorm play`.

python docs/screenshot.py study/report.html [picture] [width] [light|dark]

Needs Playwright and a Chromium: the one on the PATH, or Playwright's own.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

TOPS = ("docs/images/report.png", "docs/images/play.png")  # the first screen; other pictures show the whole page
ARGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run")


def screenshot(page_path: Path, picture: Path, width: int = 1280, theme: str = "light", full: bool = False) -> None:
    """The top of the page, or all of it."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(ARGS))
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)  # type: ignore[arg-type]
        page.goto(page_path.resolve().as_uri())
        page.wait_for_selector(".plot svg, .plot canvas")
        page.screenshot(path=picture, full_page=full)
        browser.close()


if __name__ == "__main__":
    report, picture, width, theme = (*sys.argv[1:], *("docs/images/report.png", "1280", "light")[len(sys.argv) - 2 :])
    screenshot(Path(report), Path(picture), int(width), theme, full=picture not in TOPS)
