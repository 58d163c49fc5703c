"""Links in the files outside the site (README, CONTRIBUTING, CHANGELOG) point at files and headings that exist."""

import re
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from markdown_it import MarkdownIt

from tests.support.snippets import ROOT

PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")


def links(page: Path) -> list[str]:
    """Targets of all links and images, without those of other sites."""
    found = []
    for block in MarkdownIt("gfm-like", {"linkify": False}).parse(page.read_text(encoding="utf-8")):
        for token in block.children or []:
            target = token.attrs.get("href") or token.attrs.get("src")
            if target and not urlsplit(str(target)).scheme:
                found.append(str(target))
    return found


def anchors(page: Path) -> set[str]:
    """The ids of the headings of a page, as the site and code hosts make them."""
    found = set()
    blocks = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    for heading, inline in pairwise(blocks):
        if heading.type == "heading_open":
            if given := re.search(r"\{ #(\S+) \}", inline.content):
                found.add(given[1])
            words = re.sub(r"[^\w\s-]", "", re.sub(r"\{.*\}", "", inline.content)).strip().lower()
            found.add(re.sub(r"[\s-]+", "-", words))
    return found


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    for target in links(ROOT / name):
        file, _, anchor = target.partition("#")
        path = ROOT / file if file else ROOT / name
        assert path.exists(), f"{name} links to {target}"
        assert not anchor or anchor in anchors(path), f"{name} links to {target}; there are {sorted(anchors(path))}"


def test_links_and_anchors_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A title, with `code`\n\n| [a](b.md#c) |\n|---|\n| ![d](e.svg) [f](https://g.h) |\n\n## Own { #mine }\n"
    )
    assert links(page) == ["b.md#c", "e.svg"]
    assert anchors(page) == {"a-title-with-code", "own", "mine"}
