"""The table of targets: what each row measures, what it leaves out, and its verdict."""

from typing import Any

import pytest

from batchnorm.benchmark.cases import LAYOUTS, ROWS, cases
from batchnorm.benchmark.targets import PAIRS, TARGETS, rows, verdict
from batchnorm.benchmark.totals import totals

Result = dict[str, Any]


def ratio(value: float, doubt: str | None = None) -> Result:
    return {"median": value, "low": 0.9 * value, "high": 1.1 * value, "doubt": doubt}


def network(name: str, layout: str, **ratios: float) -> Result:
    return {"name": name, "layout": layout, "dtype": "float32", "ratios": {k: ratio(v) for k, v in ratios.items()}}


@pytest.fixture
def whole() -> Result:
    """A run of every target in which ours is twice as fast everywhere."""
    steps = [network(n, la, converted=1.1, fused=1.6) for n in ("MLP", "ResNet-50", "MobileNetV2") for la in LAYOUTS]
    found = [{**case.facts, "ratios": {"torch": ratio(2.0)}} for case in cases(PAIRS, LAYOUTS)]
    return {"settings": {"quick": False}, "cases": found, "networks": steps, "build": 50.0}


def by_name(result: Result) -> dict[str, Result]:
    return {row["name"]: row for row in rows(result)}


def test_each_row_has_its_inputs(whole: Result) -> None:
    found = by_name(whole)
    assert len(found) == len(TARGETS)
    count = {name: len(row["inputs"]) for name, row in found.items()}
    assert count["float32, contiguous"] == 15
    assert count["float32, channels_last"] == 13
    assert count["bfloat16, both layouts"] == 28
    assert count["with ReLU, contiguous"] == count["with residual and ReLU, contiguous"] == 15
    assert count["fewer than 8,192 values"] == count["fewer than 8,192 values, with ReLU"] == 6 + 2
    assert count["rows of an MLP"] == len(ROWS) == 4
    assert count["least of any case"] == len(whole["cases"]) == 8 * 40
    assert found["float32, contiguous"]["measured"] == pytest.approx(2.0)
    assert found["build of the native kernels, one core"]["measured"] == 50.0


def test_every_row_of_the_aims_is_there(whole: Result) -> None:
    aims = {row["name"]: (row["at_least"], row["aim"]) for row in rows(whole) if row["aim"] is not None}
    assert aims == {
        "float32, contiguous": (3.5, 4.5),
        "float32, channels_last": (2.3, 3.0),
        "bfloat16, both layouts": (2.5, 4.0),
        "with ReLU, contiguous": (5.0, 7.0),
        "with residual and ReLU, contiguous": (5.0, 7.0),
        "fewer than 8,192 values": (1.1, 1.4),
        "fewer than 8,192 values, with ReLU": (1.3, 1.6),
        "least of any case": (1.0, 1.2),
        "step: MLP converted": (1.08, 1.2),
        "step: ResNet-50 fused, contiguous": (1.3, 1.4),
        "step: ResNet-50 fused, channels_last": (1.3, 1.4),
        "step: MobileNetV2 fused, contiguous": (1.5, 1.8),
        "step: MobileNetV2 fused, channels_last": (1.5, 1.8),
        "build of the native kernels, one core": (90, 40),
        "make test on a fresh machine": (420, 300),
    }


def test_verdicts(whole: Result) -> None:
    found = {name: row["verdict"] for name, row in by_name(whole).items()}
    assert found["float32, contiguous"] == "not enough"
    assert found["least of any case"] == "aim reached"
    assert found["step: MLP converted"] == "enough"
    assert found["step: MLP fused"] == "no aim"
    assert found["build of the native kernels, one core"] == "enough"
    assert found["make test on a fresh machine"] == "not measured"
    seconds = {"unit": "s", "at_least": 90.0, "aim": 40.0}
    assert [verdict({**seconds, "measured": s}) for s in (39.0, 41.0, 91.0)] == ["aim reached", "enough", "not enough"]


def test_means_are_geometric_and_the_least_has_a_name_and_quartiles(whole: Result) -> None:
    for case in whole["cases"]:
        if (case["dtype"], case["block"], case["layout"]) == ("float32", "plain", "contiguous"):
            case["ratios"]["torch"] = ratio(8.0 if case["shape"][0] == 32 else 1.0)
    assert by_name(whole)["float32, contiguous"]["measured"] == pytest.approx(8 ** (12 / 15))
    whole["cases"][-1]["ratios"]["torch"] = ratio(0.5)
    least = by_name(whole)["least of any case"]
    assert (least["measured"], least["low"], least["high"]) == pytest.approx((0.5, 0.45, 0.55))
    assert least["which"] == "4×32×7×7 bfloat16 channels_last add-relu"


def test_doubtful_inputs_are_left_out_and_counted(whole: Result) -> None:
    small = [c for c in whole["cases"] if c["group"] == "small" and (c["dtype"], c["block"]) == ("float32", "plain")]
    small[0]["ratios"]["torch"] = ratio(83.0, "torch stalls")
    row = by_name(whole)["fewer than 8,192 values"]
    assert row["measured"] == pytest.approx(2.0)
    assert row["left_out"] == ["2×16×8×8 float32 contiguous"]
    assert len(row["inputs"]) == 7
    for case in small[:4]:
        case["ratios"]["torch"] = ratio(83.0, "torch stalls")
    assert by_name(whole)["fewer than 8,192 values"]["measured"] is None, "half of them are no base for a total"


def test_a_run_without_all_inputs_of_a_row_does_not_measure_it(whole: Result) -> None:
    del whole["cases"][0]
    found = by_name(whole)
    assert found["float32, contiguous"]["verdict"] == "not measured"
    assert found["float32, channels_last"]["measured"] == pytest.approx(2.0)
    assert found["least of any case"]["measured"] is None
    whole["networks"] = [network("MLP", "contiguous", converted=1.3, fused=1.4) | {"dtype": "bfloat16"}]
    assert by_name(whole)["step: MLP converted"]["measured"] is None, "another dtype"


def test_a_quick_run_measures_nothing(whole: Result) -> None:
    whole["settings"]["quick"] = True
    whole["build"] = None
    assert {row["verdict"] for row in rows(whole)} == {"not measured"}


def test_totals_are_geometric_means_that_hide_nothing() -> None:
    kind = {"dtype": "float32", "block": "plain", "layout": "contiguous"}
    found = [
        {**kind, "group": "large", "ratios": {"torch": ratio(4.0), "compiled": ratio(3.0)}},
        {**kind, "group": "large", "ratios": {"torch": ratio(0.25)}},
        {**kind, "group": "large", "ratios": {"torch": ratio(83.0, "torch stalls")}},
        {**kind, "group": "small", "ratios": {"torch": ratio(83.0, "torch stalls")}},
    ]
    large, small = totals(found)
    assert large["mean"] == {"torch": pytest.approx(1.0), "compiled": pytest.approx(3.0)}
    assert large["least"] == {"torch": 0.25, "compiled": 3.0}
    assert (large["cases"], large["slower"]) == (3, {"torch": 1, "compiled": 0})
    assert large["left_out"] == {"torch": 1, "compiled": 0}
    assert (small["mean"], small["least"], small["left_out"]) == ({"torch": None}, {"torch": None}, {"torch": 1})
