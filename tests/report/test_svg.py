"""Charts as SVG: values lie where the axes say, bars begin at 0, what is compared has equal axes."""

import re
from xml.etree import ElementTree

import pytest

from batchnorm.report.axes import Axis, limits, shown
from batchnorm.report.chart import COLORS, Chart, Panel, Series
from batchnorm.report.svg import draw


def elements(chart: Chart, tag: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(draw(chart)).iter(tag))


def test_bars_begin_at_zero_and_are_in_proportion() -> None:
    chart = Chart([Panel([Series("bars", ["a", "b"], [10.0, 11.0], "batch")], names=["a", "b"])], "bars")
    low, high = (float(rect.attrib["height"]) for rect in elements(chart, "rect"))
    assert high / low == pytest.approx(1.1, abs=0.01)


def test_what_is_compared_has_equal_axes_unless_it_is_said() -> None:
    def heights(equal: bool) -> list[float]:
        panels = [Panel([Series("points", [0.0], [value], "plain")]) for value in (1.0, 3.0)]
        chart = Chart(panels, "two", columns=2, equal_y=equal)
        return [float(circle.attrib["cy"]) for circle in elements(chart, "circle")]

    first, second = heights(True)
    assert first > second, "3 is above 1"
    assert heights(False)[0] == heights(False)[1]


def test_a_gap_breaks_the_line() -> None:
    chart = Chart([Panel([Series("line", [0.0, 1, 2, 3], [1.0, 2.0, None, 3.0], "raw")])], "gap")
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
    assert Chart([Panel(series)], "").entries() == [("batch norm", "batch", False)]


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
    assert [shown(tick) for tick in Axis(low, high, 0, 100, log).ticks()] == ticks


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
