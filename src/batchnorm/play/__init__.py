"""The page of `batchnorm play`, to try batch norm by hand. `page/` has its sources, in a clone only."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from html import escape
from pathlib import Path

LANGUAGES = ("en", "ko")
HERE = Path(__file__).parent
BUILT = HERE / "page.html"
SOURCES = HERE / "page"


class NoPageError(RuntimeError):
    """Raised if there is no page and none can be built here; the message says what to do."""


def write_page(folder: Path, lang: str = "en", docs: str = "", say: Callable[[str], None] = print) -> Path:
    """Write the page to folder/index.html and return that path.

    In a clone, a page that is missing or older than its sources is first built, with npm.

    Args:
        lang: the language that the page opens in, "en" or "ko"; the page has a switch.
        docs: address of the documentation, with a slash at the end; without it, its pages are named but not linked.
        say: called with a line of text before a build, and if a build fails.

    Raises:
        NoPageError: no page was built and npm is missing or fails.
        OSError: the folder cannot be written.
    """
    if lang not in LANGUAGES:
        raise ValueError(f"lang={lang!r}: expected one of {', '.join(LANGUAGES)}")
    if is_stale():
        try:
            build(say)
        except NoPageError as error:
            if not BUILT.exists():
                raise
            say(f"the page is older than its sources: {error}")
    text = BUILT.read_text(encoding="utf-8")
    text = text.replace('<html lang="en">', f'<html lang="{lang}">', 1)
    text = text.replace('<meta name="docs" content="">', f'<meta name="docs" content="{escape(docs)}">', 1)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    path.write_text(text, encoding="utf-8")
    return path


def is_stale() -> bool:
    """True if there is no page, or if one of its sources has changed since it was built."""
    if not BUILT.exists():
        return True
    built = BUILT.stat().st_mtime
    return any(path.stat().st_mtime > built for path in _sources())


def build(say: Callable[[str], None] = print) -> None:
    """Fetch the two npm packages of the lockfile and build the page; raises NoPageError if that fails."""
    if not SOURCES.exists():
        raise NoPageError(
            "this installation has no page to play with: it was made from a checkout before `make play`. In the "
            "checkout, run `make play` and install again, or install with `pip install -e .`"
        )
    if shutil.which("npm") is None:
        raise NoPageError("the page is built with npm, which is not here: install Node.js 20 or newer and try again")
    say("building the page, with npm")
    for command in (["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"], ["node", "build.mjs"]):
        done = subprocess.run(command, cwd=SOURCES, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
            raise NoPageError(f"`{' '.join(command[:2])}` in {SOURCES} failed: {lines[0]}")


def _sources() -> list[Path]:
    if not SOURCES.exists():
        return []
    installed = SOURCES / "node_modules"
    return [path for path in SOURCES.rglob("*.*") if installed not in path.parents and "tests" not in path.parts]
