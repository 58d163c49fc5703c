"""The documentation in a browser: every page fits a desktop and a phone, and can be read in light and in dark."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.support.browsers import chromium
from tests.support.screens import SMALLEST, faults
from tests.support.snippets import ROOT

PHONE = 390
CONTENT = 342  # pixels that a phone leaves for a picture on a dark page: without the page's margins and the picture's


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed")
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.mark.parametrize("width", [1300, PHONE])
def test_every_page_can_be_read(browser: Any, site: Path, width: int) -> None:
    found = {}
    pages = sorted([site / "index.html", *site.glob("*/index.html")])
    assert len(pages) > 25
    tab = browser.new_page(viewport={"width": width, "height": 844})
    for page in pages:
        tab.goto(page.as_uri())
        tab.add_style_tag(content="* { transition: none !important; }")  # colours that are on their way are neither
        for scheme in ("default", "slate"):
            tab.evaluate("(scheme) => { document.body.dataset.mdColorScheme = scheme; }", scheme)
            found[page.parent.name, scheme] = faults(tab)
    tab.close()
    assert {place: lines for place, lines in found.items() if lines} == {}


def test_examples_in_docstrings_are_code(site: Path) -> None:
    """Outside an `Examples:` section their >>> makes quotations of them."""
    pages = [
        page for page in site.glob("**/*.html") if "<blockquote>\n<blockquote>" in page.read_text(encoding="utf-8")
    ]
    assert pages == []


@pytest.mark.parametrize("page", ["study", "doctor", "play"])
def test_a_phone_gets_a_picture_of_its_own(browser: Any, site: Path, page: str) -> None:
    shown = {}
    for width in (1300, PHONE):
        tab = browser.new_page(viewport={"width": width, "height": 844})
        tab.goto((site / page / "index.html").as_uri())
        shown[width] = tab.locator(".md-content img:visible").evaluate_all(
            "(all) => all.map((image) => [image.src.split('/').pop(), image.naturalWidth > 0])"
        )
        tab.close()
    name = {"study": "report"}.get(page, page)
    assert shown == {1300: [[f"{name}.png#wide", True]], PHONE: [[f"{name}-narrow.png#narrow", True]]}


@pytest.mark.parametrize("picture", sorted((ROOT / "docs" / "images").glob("*.svg")), ids=lambda path: path.stem)
def test_letters_in_pictures_are_large_enough_for_a_phone(picture: Path) -> None:
    root = ElementTree.parse(picture).getroot()
    width = float(root.attrib["viewBox"].split()[2])
    smallest = min(float(node.attrib["font-size"]) for node in root.iter() if "font-size" in node.attrib)
    assert smallest * min(CONTENT / width, 1) >= SMALLEST
