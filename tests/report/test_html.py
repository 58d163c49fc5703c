"""The page, in a browser: it draws, asks for nothing, shows names as text, and fits a phone."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batchnorm.report.html import page
from tests.support.browsers import chromium
from tests.support.studies import EVIL, quick


def named(name: str) -> dict[str, Any]:
    """The quick study with a name in every place that a user's file or network fills."""
    result = copy.deepcopy(quick().to_dict())
    result["network"] = name
    for claim in result["claims"]:
        for key in ("layers", "drift"):
            layers = claim["detail"].get(key)
            if layers and "plain" in layers:
                claim["detail"][key] = {arm: {name + k: v for k, v in found.items()} for arm, found in layers.items()}
            elif layers:
                claim["detail"][key] = {name + k: v for k, v in layers.items()}
    return result


def test_the_page_needs_nothing_else() -> None:
    text = page(quick().to_dict())
    assert "default-src 'none'" in text
    assert 'src="http' not in text
    assert '<link rel="stylesheet"' not in text
    assert text.count('class="plot"') >= 9


def test_names_are_escaped() -> None:
    text = page(named(EVIL))
    assert EVIL not in text
    assert "&lt;script&gt;evil()&lt;/script&gt;" in text
    assert "\\u003cscript>evil()" in text, "layer names reach the figures' data"


def test_an_interrupted_or_unjudged_study_is_a_page_too() -> None:
    result = named("net") | {"interrupted": True, "runs_finished": 1, "runs_planned": 30, "scores": {}}
    for claim in result["claims"]:
        claim.update(
            verdict="not measured", detail={}, effects=[], median=None, spread=None, figure="", reason="stopped"
        )
    text = page(result)
    assert "Interrupted: 1 of 30 runs" in text
    assert 'class="plot"' not in text
    assert "<strong>0 of 0</strong>" in text


def test_numbers_without_a_value_are_drawn_as_gaps() -> None:
    result = named("net")
    result["runs"][0]["score"] = None
    for claim in result["claims"]:
        claim["effects"] = [None, 1.0]
    assert "Seed by seed: ∞, 1." in page(result)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page(named(EVIL)), encoding="utf-8")
    return path


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (360, "dark")])
def test_in_a_browser(browser: Any, report: Path, width: int, theme: str) -> None:
    tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=theme)
    requests: list[str] = []
    complaints: list[str] = []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto(report.as_uri())
    tab.wait_for_selector("#figure-9-0 .main-svg")
    plots, drawn = tab.locator(".plot").count(), tab.locator(".plot:has(.main-svg)").count()
    assert plots == drawn >= 9
    assert tab.locator("#figure-1-0 .scatterlayer path.js-line").count() == 4, "two arms, two seeds"
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert EVIL in tab.locator("h1 ~ dl").inner_text(), "the name is shown as text"
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.close()


def test_both_themes_are_readable(browser: Any, report: Path) -> None:
    tab = browser.new_page(color_scheme="light")
    tab.goto(report.as_uri())
    tab.wait_for_selector("#figure-1-0 .main-svg")

    def lightness() -> tuple[int, ...]:
        script = "getComputedStyle(document.body)"
        return tuple(
            sum(map(int, tab.evaluate(f"{script}.{key}.match(/\\d+/g).slice(0, 3)"))) // 3
            for key in ("backgroundColor", "color")
        )

    light = lightness()
    tab.emulate_media(color_scheme="dark")
    dark = lightness()
    assert light[0] > 200 > 100 > light[1]
    assert dark[0] < 100 < 200 < dark[1]
    tab.wait_for_function("document.querySelector('#figure-1-0').layout.font.color.trim() === '#9aa7b6'")
    tab.close()
