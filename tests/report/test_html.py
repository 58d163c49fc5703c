"""The page, in a browser: it draws, asks for nothing, shows names as text, and fits a phone."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batchnorm.report.chart import COLORS
from batchnorm.report.html import page
from tests.support.browsers import chromium
from tests.support.screens import faults
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


def test_the_page_needs_nothing_else_and_is_small() -> None:
    text = page(quick().to_dict())
    assert "default-src 'none'" in text
    assert 'src="http' not in text
    assert '<link rel="stylesheet"' not in text
    assert text.count('<svg class="chart"') == text.count('class="plot"') >= 9
    assert len(text.encode()) < 500_000
    assert "plotly" not in text.lower()
    assert "<code>batchnorm play</code>" in text


def test_names_are_escaped() -> None:
    text, interactive = page(named(EVIL)), page(named(EVIL), interactive=True)
    assert EVIL not in text
    assert EVIL not in interactive
    assert "&lt;script&gt;evil()&lt;/script&gt;" in text
    assert "\\u003cscript>evil()" not in interactive, "plotly takes tags in names: they are escaped before"
    assert "&lt;script&gt;evil()" in interactive[interactive.index("const FIGURES") :]


def test_an_interrupted_or_unjudged_study_is_a_page_too() -> None:
    result = named("net") | {
        "interrupted": True,
        "runs_finished": 1,
        "runs_planned": 30,
        "scores": {},
        "headline": "The study was interrupted before it began.",
    }
    for claim in result["claims"]:
        claim.update(
            verdict="not measured", detail={}, effects=[], median=None, spread=None, figure="", reason="stopped"
        )
    text = page(result)
    assert "Interrupted: 1 of 30 runs" in text
    assert 'class="plot"' not in text
    assert "The study was interrupted before it began" in text


def test_numbers_without_a_value_are_drawn_as_gaps() -> None:
    result = named("net")
    result["runs"][0]["score"] = None
    for claim in result["claims"]:
        claim["effects"] = [None, 1.0]
    assert "Effect, seed by seed: ∞, 1 " in page(result)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report")
    for name, interactive in (("static", False), ("interactive", True)):
        (path / f"{name}.html").write_text(page(named(EVIL), interactive), encoding="utf-8")
    return path


@pytest.mark.parametrize(("width", "theme"), [(1300, "light"), (390, "dark")])
@pytest.mark.parametrize("kind", ["static", "interactive"])
def test_in_a_browser(browser: Any, folder: Path, kind: str, width: int, theme: str) -> None:
    tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=theme)
    requests: list[str] = []
    complaints: list[str] = []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto((folder / f"{kind}.html").as_uri())
    drawing = {"static": "svg.chart", "interactive": ".main-svg"}[kind]
    tab.wait_for_selector(f"#figure-9-0 {drawing}")
    plots, drawn = tab.locator(".plot").count(), tab.locator(f".plot:has({drawing})").count()
    assert plots == drawn >= 9
    curves = {"static": "#figure-1-0 path[stroke]", "interactive": "#figure-1-0 .scatterlayer path.js-line"}[kind]
    assert tab.locator(curves).count() == 4, "two arms, two seeds"
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert EVIL in tab.locator("dl").inner_text(), "the name is shown as text"
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.close()


def test_the_summary_is_kept_as_svg_and_as_png(browser: Any, folder: Path, tmp_path: Path) -> None:
    tab = browser.new_page()
    tab.goto((folder / "static.html").as_uri())
    starts = {"svg": b"<svg", "png": b"\x89PNG"}
    for kind, start in starts.items():
        with tab.expect_download() as found:
            tab.click(f"#summary-{kind}")
        found.value.save_as(tmp_path / kind)
        assert (tmp_path / kind).read_bytes().startswith(start)
        assert (tmp_path / kind).stat().st_size > 5000
    assert "&lt;script&gt;" in (tmp_path / "svg").read_text(encoding="utf-8")
    tab.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1300, 390])
@pytest.mark.parametrize("kind", ["static", "interactive"])
def test_everything_can_be_read(browser: Any, folder: Path, kind: str, width: int, theme: str) -> None:
    tab = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=theme)
    tab.goto((folder / f"{kind}.html").as_uri())
    tab.locator("details").evaluate_all("(all) => all.forEach((details) => { details.open = true; })")
    assert faults(tab) == []
    tab.close()


def test_both_themes_are_readable(browser: Any, folder: Path) -> None:
    """Of the page's text, and of the text in its figures."""
    tab = browser.new_page(color_scheme="light")
    tab.goto((folder / "static.html").as_uri())

    def lightness() -> tuple[int, ...]:
        return tuple(
            sum(map(int, tab.evaluate(f"getComputedStyle({element}).{key}.match(/\\d+/g).slice(0, 3)"))) // 3
            for element, key in (
                ("document.body", "backgroundColor"),
                ("document.body", "color"),
                ("document.querySelector('.chart text')", "fill"),
            )
        )

    light = lightness()
    tab.emulate_media(color_scheme="dark")
    dark = lightness()
    assert light[0] > 200 > 110 > max(light[1:])
    assert dark[0] < 100 < 150 < min(dark[1:])
    tab.close()


def test_interactive_figures_have_equal_axes_and_the_colours_of_the_theme(browser: Any, folder: Path) -> None:
    tab = browser.new_page(color_scheme="light")
    tab.goto((folder / "interactive.html").as_uri())
    tab.wait_for_selector("#figure-9-0 .main-svg")
    layout = tab.evaluate("FIGURES['figure-5-1'].layout")
    assert layout["xaxis"]["range"] == layout["xaxis2"]["range"], "before and after, on one axis"
    assert layout["yaxis"]["range"] == layout["yaxis2"]["range"]
    stroke = "getComputedStyle(document.querySelector('#figure-1-0 .scatterlayer path.js-line')).stroke"
    light = tab.evaluate(stroke)
    tab.emulate_media(color_scheme="dark")
    tab.wait_for_timeout(200)
    assert [light, tab.evaluate(stroke)] == [rgb(color) for color in COLORS["batch"]]
    tab.close()


def rgb(color: str) -> str:
    return f"rgb({', '.join(str(int(color[i : i + 2], 16)) for i in (1, 3, 5))})"
