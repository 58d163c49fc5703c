"""The built page; without it, the test is skipped with the reason."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from batchnorm import play
from tests.support.browsers import chromium


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("npm") is None:
        pytest.skip("there is no npm to build the page with")
    with FileLock(tmp_path_factory.getbasetemp().parent / "page.lock"):  # one worker builds, the others wait
        if play.is_stale():
            try:
                play.build()
            except play.NoPageError as error:
                if "npm ci" in str(error):
                    pytest.skip(f"npm cannot fetch what the page is built with: {error}")
                raise
    return play.write_page(tmp_path_factory.mktemp("play"))


@pytest.fixture(scope="module")  # not for the session: Playwright runs once at a time, and other tests use it too
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def tab(browser: Any, page: Path) -> Iterator[Any]:
    """The page, open in English on a desktop; what it complains of fails the test."""
    complaints: list[str] = []
    found = browser.new_page(viewport={"width": 1300, "height": 900})
    found.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    found.on("pageerror", lambda error: complaints.append(str(error)))
    found.goto(page.as_uri())
    found.wait_for_selector("#evaluation canvas")
    yield found
    found.close()
    assert complaints == []
