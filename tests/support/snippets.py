"""The Python snippets on a page of the docs."""

import re
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
INCLUDE = re.compile(r'--8<-- "([^":]+)')
NOT_RUN = re.compile(r"<!-- not run: (.+?) -->")


@dataclass(frozen=True)
class Snippet:
    """A fenced block of Python: `setup` is the page's block with the title "Set-up", if there is one above."""

    page: Path
    line: int
    code: str
    setup: str = ""
    not_run: str | None = None  # the reason in a mark `<!-- not run: reason -->` right above

    @property
    def includes(self) -> list[str]:
        """The files that the block includes instead of its own code."""
        return INCLUDE.findall(self.code)


def snippets(page: Path) -> list[Snippet]:
    """All snippets of a page, in order."""
    found, setup, above = [], "", ""
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "fence" and re.match(r"\s*(\{ \.)?python\b", token.info):
            assert token.map is not None
            mark = NOT_RUN.search(above)
            found.append(Snippet(page, token.map[0] + 1, token.content, setup, mark and mark[1]))
            if 'title="Set-up"' in token.info:
                setup = token.content
        above = token.content if token.type == "html_block" else ""
    return found
