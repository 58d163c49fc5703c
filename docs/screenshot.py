"""Takes the pictures of a page: as a desktop shows its top, and as a phone does.

python docs/screenshot.py study/report.html docs/images/report.png

writes report.png and report-narrow.png. Needs Playwright and a Chromium: the one on the PATH, or Playwright's own.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

ARGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run")
# Widths at which the page's letters are about as large in the documentation as on the page itself.
WIDE, NARROW = {"width": 860, "height": 900}, {"width": 390, "height": 844}


def screenshots(page_path: Path, picture: Path) -> None:
    """Write the wide picture, and the narrow one beside it."""
    narrow = picture.with_stem(f"{picture.stem}-narrow")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(ARGS))
        for target, viewport, scale in ((picture, WIDE, 1.5), (narrow, NARROW, 2)):
            page = browser.new_page(viewport=viewport, device_scale_factor=scale)  # type: ignore[arg-type]
            page.goto(page_path.resolve().as_uri())
            page.wait_for_selector("svg.chart, .plot canvas")
            page.screenshot(path=target)
            page.close()
        browser.close()


if __name__ == "__main__":
    screenshots(Path(sys.argv[1]), Path(sys.argv[2]))
