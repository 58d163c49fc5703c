"""The page in the docs site: it exists if it can be built, and its links lead to sections that exist."""

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from batchnorm import play

DOCS = Path(play.__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed")
    spec = spec_from_file_location("play_page", DOCS / "play_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def site() -> tuple[Any, Any]:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

    config = MkDocsConfig()
    config.load_dict({"site_name": "site", "docs_dir": str(DOCS)})
    assert config.validate()[0] == []
    config.plugins._current_plugin = "play_page"  # mkdocs sets it while it calls a hook
    return Files([]), config


TEXT = "before\n[Open](play/page.html)\nafter"


def test_the_page_is_part_of_the_site(page: Path, hook: ModuleType) -> None:
    files, config = site()
    hook.on_files(files, config)
    assert '<meta name="docs" content="../">' in files.get_file_from_path("play/page.html").content_string
    assert hook.on_page_markdown(TEXT, None, config, files) == TEXT


def test_without_the_page_nothing_links_to_it(
    hook: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(play, "BUILT", tmp_path / "none.html")
    monkeypatch.setattr(play, "SOURCES", tmp_path / "none")
    files, config = site()
    hook.on_files(files, config)
    assert hook.on_page_markdown(TEXT, None, config, files) == "before\nafter"
    assert "the site has no page to play with: this installation has no page" in capsys.readouterr().out


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_links_lead_to_sections_that_exist(browser: Any, page: Path, tmp_path: Path, lang: str) -> None:
    toc = pytest.importorskip("markdown.extensions.toc", reason="Markdown is not installed")
    path = play.write_page(tmp_path, lang, docs="../")
    tab = browser.new_page(reduced_motion="reduce")
    tab.goto(path.as_uri())
    links = set()
    faults = tab.locator("#faults [aria-pressed]")
    for i in range(faults.count()):  # each fault has a link of its own
        faults.nth(i).click()
        links |= set(tab.locator(".docs a").evaluate_all("(all) => all.map((a) => a.getAttribute('href'))"))
    tab.close()
    assert len(links) >= 8
    for link in links:
        name, _, anchor = link.removeprefix("../").partition("/#")
        text = (DOCS / f"{name.rstrip('/')}.md").read_text(encoding="utf-8")
        headings = {
            toc.slugify(heading.replace("`", ""), "-") for heading in re.findall("^#+ (.*)", text, re.MULTILINE)
        }
        assert not anchor or anchor in headings, link
