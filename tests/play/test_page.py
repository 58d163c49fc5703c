"""The page in a browser: it draws, asks for nothing, fits a phone, works by keyboard, and has names for everything."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.screens import faults

POINT = "#batch [role=slider].handle"


@pytest.mark.parametrize("lang", ["en", "ko"])
@pytest.mark.parametrize(("width", "theme"), [(1300, "light"), (1300, "dark"), (390, "light"), (390, "dark")])
def test_it_draws_asks_for_nothing_and_fits(browser: Any, page: Path, width: int, theme: str, lang: str) -> None:
    tab = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=theme)
    requests: list[str] = []
    complaints: list[str] = []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto(f"{page.as_uri()}?lang={lang}#evaluation")
    tab.wait_for_selector("#evaluation canvas")
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert tab.evaluate("document.documentElement.lang") == lang
    assert faults(tab) == []
    assert tab.evaluate("scrollY") > 200, "the address's anchor is shown"
    sections = tab.locator("main section")
    assert sections.count() == tab.locator("nav li").count() + 1 >= 3
    for i in range(sections.count()):
        assert sections.nth(i).locator("h2").inner_text().strip()
    tab.close()


def test_it_is_small_and_carries_the_licence_of_its_chart_library(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(text.encode()) < 400_000
    assert "default-src 'none'" in text
    assert "The MIT License" in text
    assert "Leon Sorokin" in text
    assert "{{" not in text.split("<script>")[0]


def test_both_languages_have_the_same_words_with_the_same_values(tab: Any) -> None:
    panels = tab.evaluate("batchnormPlay.words")
    assert len(panels) == tab.locator("nav li").count()
    for name, words in panels.items():
        assert list(words["ko"]) == list(words["en"]), name
        for key, text in words["en"].items():
            if isinstance(text, str):
                assert _values(text) == _values(words["ko"][key]), f"{name}: {key}"


def _values(text: str) -> list[str]:
    return sorted(part.split("}")[0] for part in text.split("{")[1:])


def test_the_language_switch_keeps_settings_and_focus(tab: Any) -> None:
    tab.locator(POINT).first.focus()
    tab.keyboard.press("Home")
    tab.get_by_role("button", name="한국어").click()
    assert tab.evaluate("document.documentElement.lang") == "ko"
    assert tab.locator("h1").inner_text() == "손으로 만져 보는 배치 정규화"
    assert tab.evaluate("document.activeElement.lang") == "ko"
    assert tab.locator(POINT).first.get_attribute("aria-valuenow") == "-10"
    tab.get_by_role("button", name="English").click()
    assert tab.locator("h1").inner_text() == "Batch norm in your hands"


def test_a_point_moves_by_keyboard(tab: Any) -> None:
    point = tab.locator(POINT).first
    point.focus()
    seen = []
    for key in ("ArrowRight", "Shift+ArrowRight", "ArrowDown", "PageDown", "End", "ArrowRight", "Home"):
        tab.keyboard.press(key)
        seen.append(float(point.get_attribute("aria-valuenow")))
    assert seen == [1.3, 2.3, 2.2, 1.2, 10, 10, -10]
    assert point.get_attribute("aria-valuetext").startswith("−10.0, normalised −2.")


def test_a_point_moves_by_pointer(tab: Any) -> None:
    point = tab.locator(POINT).nth(1)
    box = point.locator(".before").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    line = tab.locator("#batch svg.line").bounding_box()
    tab.mouse.move(x, y)
    tab.mouse.down()
    tab.mouse.move(line["x"] + line["width"] / 2, y, steps=4)
    tab.mouse.up()
    assert float(point.get_attribute("aria-valuenow")) == pytest.approx(0, abs=0.11)
    tab.mouse.move(x, y)
    assert float(point.get_attribute("aria-valuenow")) == pytest.approx(0, abs=0.11), "it was let go"


def test_everything_has_a_name(tab: Any) -> None:
    nameless = tab.evaluate(
        """[...document.querySelectorAll("input, select, button, a, [role]")]
        .filter((e) => e.getAttribute("role") !== "status" && !e.closest("[aria-hidden=true]"))
        .filter((e) => !(e.labels?.[0]?.textContent || e.getAttribute("aria-label") || e.textContent).trim())
        .map((e) => e.outerHTML)"""
    )
    assert nameless == []
    names = tab.locator("#batch").aria_snapshot()
    assert 'slider "Point 1 of 8"' in names
    assert 'slider "γ (scale)"' in names
    assert 'img "Share of points by value, before and after"' in names
    assert "Before: mean 4.20, standard deviation" in names


def test_every_control_is_reached_by_tab(tab: Any) -> None:
    tab.locator("#batch h2").evaluate("(e) => { e.tabIndex = -1; e.focus(); }")
    reached = set()
    for _ in range(40):
        tab.keyboard.press("Tab")
        reached.add(
            tab.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.textContent")
        )
    assert {"Point 1 of 8", "Point 8 of 8", "Add a point", "A constant batch", "Copy"} <= reached


def test_points_are_added_and_removed(tab: Any) -> None:
    for _ in range(6):
        tab.get_by_role("button", name="Add a point").click()
    assert tab.locator(POINT).count() == 12
    for _ in range(12):
        tab.get_by_role("button", name="Remove the chosen point").click()
    assert tab.locator(POINT).count() == 2
    tab.get_by_role("button", name="Reset").click()
    assert tab.locator(POINT).count() == 8


def test_what_is_kept_is_said(tab: Any) -> None:
    verdict = tab.locator("#batch .verdict")
    assert verdict.inner_text().startswith("Order kept")
    _slide(tab, "γ (scale)", -1)
    assert verdict.inner_text().startswith("γ is negative, so the order is reversed")
    _slide(tab, "γ (scale)", 0)
    assert verdict.inner_text().startswith("γ is 0")
    _slide(tab, "γ (scale)", 1)
    _slide(tab, "ε (added to σ²)", 6)
    assert "less than 1" in verdict.inner_text()
    tab.get_by_role("button", name="A constant batch").click()
    assert "0 divided by √ε = 1 is 0: every output is β" in verdict.inner_text()
    shares = tab.locator("#batch table.points tr").nth(6).inner_text().split()
    assert shares[2:] == ["–"] * 7


def test_shares_of_the_range_are_the_same_before_and_after(tab: Any) -> None:
    _slide(tab, "γ (scale)", -2.5)
    rows = tab.locator("#batch table.points tr")
    before, after = (rows.nth(i).inner_text().split("\t")[1:] for i in (6, 7))
    assert before == after
    assert before[0] == "10.5 %", "(2.0 − 1.2) / (8.8 − 1.2)"


def test_calibration_mends_evaluation_and_can_be_undone(tab: Any) -> None:
    mean = tab.locator("#evaluation [data-value=evalMean]")
    stale = mean.inner_text()
    assert float(stale.replace("−", "-")) > 0.5
    assert "Evaluation mode is off" in tab.locator("#evaluation .verdict").inner_text()
    tab.get_by_role("button", name="Calibrate").click()
    assert abs(float(mean.inner_text().replace("−", "-"))) < 0.1
    assert tab.locator("#evaluation .verdict").inner_text().startswith("Calibrated")
    tab.get_by_role("button", name="Undo calibration").click()
    assert mean.inner_text() == stale


def test_training_moves_by_itself_and_stops(tab: Any) -> None:
    steps = tab.get_by_label("training steps")
    tab.locator("#evaluation").scroll_into_view_if_needed()
    tab.locator("#evaluation").get_by_role("button", name="Train").click()
    _until(tab, "document.querySelector('#evaluation input').value > 110")
    tab.locator("#evaluation").get_by_role("button", name="Pause").click()
    reached = steps.input_value()
    tab.wait_for_timeout(150)
    assert steps.input_value() == reached


def test_nothing_moves_for_who_asked_for_less_motion(browser: Any, page: Path) -> None:
    tab = browser.new_page(reduced_motion="reduce")
    tab.goto(page.as_uri())
    tab.locator("#evaluation").get_by_role("button", name="Train 10 steps").click()
    tab.wait_for_timeout(150)
    assert tab.get_by_label("training steps").input_value() == "110"
    tab.close()


def test_code_is_copied_or_selected(tab: Any) -> None:
    tab.locator("#batch .copy").click()
    _until(
        tab,
        "getSelection().toString().includes('bn.BatchNorm')"
        " || document.querySelector('#batch .copy').textContent === 'Copied'",
    )


def test_contested_explanations_are_marked_with_sources(tab: Any) -> None:
    section = tab.locator("#known")
    contested = section.locator("li:has(.badge.contested)").all_inner_texts()
    assert any("internal covariate shift" in text for text in contested)
    assert any("smoother" in text for text in contested)
    links = section.locator("a").evaluate_all("(links) => links.map((a) => a.href)")
    assert {"https://arxiv.org/abs/1502.03167", "https://arxiv.org/abs/1805.11604"} <= set(links)


def _slide(tab: Any, label: str, value: float) -> None:
    tab.get_by_label(label, exact=True).evaluate(
        "(input, value) => { input.value = value; input.dispatchEvent(new Event('input')); }", value
    )


def _until(tab: Any, condition: str) -> None:
    """Playwright's own wait makes a function of a string in the page, which the page's policy forbids."""
    for _ in range(100):
        if tab.evaluate(condition):
            return
        tab.wait_for_timeout(50)
    raise AssertionError(f"never true: {condition}")
