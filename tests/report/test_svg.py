"""Charts as SVG: values lie where the axes say, bars begin at 0, charts to compare have equal axes."""

import itertools
import re
from xml.etree import ElementTree

import pytest

from batchnorm.report.axes import Axis, limits, tick_text
from batchnorm.report.chart import COLORS, SHAPES, Chart, Key, Panel, Series
from batchnorm.report.figures import ARM_COLORS, LAYERS, ramp
from batchnorm.report.svg import draw, text_width, without_prefix


def elements(chart: Chart, tag: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(draw(chart)).iter(tag))


def test_bars_begin_at_zero_and_are_in_proportion() -> None:
    chart = Chart([Panel([Series("bars", ["a", "b"], [10.0, 11.0], "batch")], names=["a", "b"])], "bars")
    low, high = (float(rect.attrib["height"]) for rect in elements(chart, "rect"))
    assert high / low == pytest.approx(1.1, abs=0.01)


def test_what_is_compared_has_equal_axes_unless_it_is_said() -> None:
    def heights(equal: bool) -> list[float]:
        panels = [Panel([Series("points", [0.0], [value], "batch")]) for value in (1.0, 3.0)]
        chart = Chart(panels, "two", columns=2, equal_y=equal)
        return [float(circle.attrib["cy"]) for circle in elements(chart, "circle")]

    first, second = heights(True)
    assert first > second, "3 is above 1"
    assert heights(False)[0] == heights(False)[1]


def test_a_gap_breaks_the_line() -> None:
    chart = Chart([Panel([Series("line", [0.0, 1, 2, 3], [1.0, 2.0, None, 3.0], "soft")])], "gap")
    (path,) = elements(chart, "path")
    assert re.sub(r"[\d. ]", "", path.attrib["d"]) == "MLM"


def test_names_are_escaped() -> None:
    evil = "<script>evil()</script>"
    series = Series("points", [evil], [1.0], "c0", evil)
    text = draw(Chart([Panel([series], evil, evil, evil, names=[evil])], evil, columns=1))
    assert "<script" not in text
    assert ElementTree.fromstring(text) is not None


def test_the_legend_has_each_label_once() -> None:
    series = [Series("line", [0.0, 1.0], [0.0, 1.0], "batch", "batch norm")] * 3
    assert Chart([Panel(series)], "").entries() == [Key("batch norm", "batch")]


def test_arms_differ_in_shape_as_well_as_in_colour() -> None:
    together = [ARM_COLORS[arm] for arm in ("batch norm", "plain", "layer norm", "group norm")]
    assert len({SHAPES[color] for color in together}) == len(together)
    assert SHAPES["raw"] != SHAPES["plain"], "claim 6 compares these two"
    chart = Chart([Panel([Series("line", [0.0, 1.0], [0.0, 1.0], color, color) for color in together])], "arms")
    paths = [path.attrib["d"] for path in elements(chart, "path") if path.attrib["fill"] != "none"]
    assert elements(chart, "circle")
    assert len({re.sub(r"^M[\d. ]+", "", path) for path in paths}) == len(together) - 1


def test_layers_go_from_dark_to_light() -> None:
    for theme in (0, 1):
        colors = [COLORS[ramp(i, LAYERS)][theme] for i in range(LAYERS)]
        shades = [0.2126 * int(c[1:3], 16) + 0.7152 * int(c[3:5], 16) + 0.0722 * int(c[5:], 16) for c in colors]
        assert shades == sorted(shades)
        assert min(b - a for a, b in itertools.pairwise(shades)) > 3
    assert (ramp(0, 1), ramp(0, 2), ramp(1, 2)) == ("l0", "l0", "l7")


def test_names_lose_the_modules_that_all_are_in() -> None:
    assert without_prefix(["net.body.1.norm", "net.body.2.norm"]) == ["…1.norm", "…2.norm"]
    assert without_prefix(["stem.norm", "body.norm"]) == ["stem.norm", "body.norm"]
    assert without_prefix(["net.norm"]) == ["net.norm"]


@pytest.mark.parametrize("names", [[f"a{i}" for i in range(60)], [f"net.layers.{i}.batch_norm" for i in range(60)]])
def test_names_below_an_axis_do_not_touch(names: list[str]) -> None:
    chart = Chart([Panel([Series("points", names, [1.0] * 60, "batch")], names=names)], "many")
    first, last = (without_prefix(names)[i][:3] for i in (0, -1))
    ticks = [text for text in elements(chart, "text") if (text.text or "")[0] == first[0]]
    assert (ticks[0].text or "").startswith(first)
    assert (ticks[-1].text or "").startswith(last)
    places = [float(tick.attrib["x"]) for tick in ticks]
    width = 14 if "transform" in ticks[0].attrib else text_width(ticks[-1].text or "")
    assert min(b - a for a, b in itertools.pairwise(places)) > width


def test_panels_above_one_another_share_an_axis() -> None:
    series = [Series("line", [0.0, 100.0], [0.0, 1.0], "batch")]
    texts = [t.text for t in elements(Chart([Panel(series, "step", "score")] * 3, "three"), "text")]
    assert [texts.count(text) for text in ("step", "score", "100")] == [1, 1, 1]
    apart = Chart([Panel(series, "step", "score")] * 3, "three", equal_x=False)
    assert [t.text for t in elements(apart, "text")].count("step") == 3


@pytest.mark.parametrize(
    ("low", "high", "log", "ticks"),
    [
        (0.0, 1.0, False, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (-3.0, 9.0, False, ["-2", "0", "2", "4", "6", "8"]),
        (1e-9, 1e2, True, ["10⁻⁸", "10⁻⁶", "10⁻⁴", "0.01", "1", "100"]),
        (1.5, 8.0, True, ["1.5", "2", "3", "5", "7"]),
    ],
)
def test_ticks(low: float, high: float, log: bool, ticks: list[str]) -> None:
    assert [tick_text(tick) for tick in Axis(low, high, 0, 100, log).ticks()] == ticks


def test_a_logarithmic_axis() -> None:
    axis = Axis(0.01, 100.0, 0, 400, True)
    assert [round(axis(v)) for v in (0.01, 1, 10, 100, 0.0)] == [0, 200, 300, 400, 0]


def test_limits_show_every_value() -> None:
    low, high = limits([None, 2.0, 5.0], log=False)
    assert low < 2 < 5 < high
    assert limits([2.0, 5.0], log=False, zero=True)[0] == 0
    assert limits([0.0, 1e-3, 1.0], log=True)[0] > 0
    assert limits([], log=True) == (0.1, 1.0)


def test_colours_are_pairs_for_light_and_dark() -> None:
    assert all(re.fullmatch("#[0-9a-f]{6}", color) for pair in COLORS.values() for color in pair)


def test_numbers_below_an_axis_do_not_touch() -> None:
    rates = [0.00081, 0.0027, 0.009, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
    chart = Chart([Panel([Series("line", rates, rates, "batch")], log_x=True, x_ticks=rates)], "rates")
    drawn = [text for text in elements(chart, "text") if text.attrib["text-anchor"] == "middle"]
    ends = [(float(t.attrib["x"]), text_width(t.text or "") / 2) for t in drawn]
    assert len(drawn) > 4
    assert all(a + half < b - other for (a, half), (b, other) in itertools.pairwise(ends))
