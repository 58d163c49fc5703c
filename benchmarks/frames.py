"""Measures the frame rate of panel 2 of `batchnorm play` while it trains, at the widths of a desktop and a phone.

python benchmarks/frames.py [frames]

A headless Chromium shows the page and counts its frames: the mean rate, the median and the slowest twentieth of the
times between frames, and the training steps in a second. It takes about half a minute, and needs Playwright and a
Chromium. Other programs slow it down, so each line has the load average.
"""

import itertools
import os
import shutil
import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Browser, Page, sync_playwright

from batchnorm.play import write_page

ARGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run")
WIDTHS, PRESETS = (1300, 390), ("deep", "exploding")
FRAMES = """(count) => new Promise((done) => {
  const times = [];
  const frame = (now) => times.push(now) <= count ? requestAnimationFrame(frame) : done(times);
  requestAnimationFrame(frame);
})"""


def measure(browser: Browser, page: Path, width: int, preset: str, frames: int) -> str:
    tab = browser.new_page(viewport={"width": width, "height": 900})
    tab.goto(page.as_uri())
    tab.select_option("#network .controls select >> nth=0", preset)
    tab.locator("#network").scroll_into_view_if_needed()
    tab.wait_for_timeout(1500)  # the first steps, in which the page compiles
    before = steps(tab)
    times = tab.evaluate(FRAMES, frames)
    seconds = (times[-1] - times[0]) / 1000
    rate = (steps(tab) - before) / seconds
    between = [later - earlier for earlier, later in itertools.pairwise(times)]
    slow = statistics.quantiles(between, n=20)[-1]
    tab.close()
    return (
        f"{width:4} px, {preset:9}: {frames / seconds:5.1f} frames/s, median {statistics.median(between):.1f} ms, "
        f"slowest twentieth from {slow:.1f} ms, {rate:.0f} steps/s, load average {os.getloadavg()[0]:.2f}"
    )


def steps(tab: Page) -> int:
    return int(tab.get_attribute("#network", "data-steps") or 0)


def main(frames: int) -> None:
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        page = write_page(Path(folder))
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(ARGS))
        for width, preset in itertools.product(WIDTHS, PRESETS):
            print(measure(browser, page, width, preset, frames), flush=True)
        browser.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
