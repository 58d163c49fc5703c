"""The page's numbers are the package's, to 1e-5, and its lines of Python do what the panel shows."""

from typing import Any

import pytest
import torch
from torch import Tensor

import batchnorm as bn

CLOSE = 1e-5


def js(tab: Any, expression: str, *arguments: Any) -> Any:
    body = f"const {{ normalise: n, stream: s }} = batchnormPlay; return {expression};"
    return tab.evaluate(f"(given) => {{ {body} }}", [*arguments])


def flat(x: Tensor) -> list[float]:
    return x.detach().flatten().tolist()


@pytest.fixture
def data() -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    x = (torch.randn(7, 3, dtype=torch.float64) * 5 + 100).requires_grad_()
    weight, bias = (torch.randn(3, dtype=torch.float64).requires_grad_() for _ in range(2))
    return x, weight, bias, torch.randn(7, 3, dtype=torch.float64)


def test_forward_and_backward(tab: Any, data: tuple[Tensor, ...]) -> None:
    x, weight, bias, dy = data
    y = bn.batch_norm(x, None, None, weight, bias, training=True, eps=1e-3)
    y.backward(dy)
    found = js(
        tab,
        """(() => {
          const cache = n.forward(given[0], 3, { gamma: given[1], beta: given[2], eps: 1e-3 });
          const { dx, dgamma, dbeta } = n.backward(given[3], cache);
          return [cache.output, dx, dgamma, dbeta].map((part) => [...part]);
        })()""",
        *map(flat, (x, weight, bias, dy)),
    )
    for mine, expected in zip(found, (y, x.grad, weight.grad, bias.grad), strict=True):
        assert mine == pytest.approx(flat(expected), abs=CLOSE)


def test_running_statistics_and_evaluation(tab: Any, data: tuple[Tensor, ...]) -> None:
    x, weight, bias, _ = data
    mean, variance = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    bn.batch_norm(x, mean, variance, training=True, momentum=0.3)
    y = bn.batch_norm(x, mean, variance, weight, bias)
    found = js(
        tab,
        """(() => {
          const statistics = n.running(3);
          n.update(statistics, n.channelMoments(given[0], 3), 0.3);
          const y = n.evaluate(given[0], statistics, { gamma: given[1], beta: given[2] });
          return [statistics.mean, statistics.variance, y].map((part) => [...part]);
        })()""",
        *map(flat, (x, weight, bias)),
    )
    for mine, expected in zip(found, (mean, variance, y), strict=True):
        assert mine == pytest.approx(flat(expected), abs=CLOSE)


def stream(tab: Any, **settings: Any) -> dict[str, Any]:
    """A run of panel 3: its batches, statistics before and after calibration, and both outputs of the test data."""
    return js(
        tab,
        """(() => {
          const run = s.train(given[0]);
          const { batches, test } = s.after(run.history.length, given[0].batchSize);
          const exact = s.calibrated(batches);
          const pair = ({ mean, variance }) => [mean[0], variance[0]];
          return {
            trained: run.batches.map((x) => [...x]), batches: batches.map((x) => [...x]), test: [...test],
            stale: pair(run.statistics), exact: pair(exact),
            staleOutput: [...n.evaluate(test, run.statistics)], exactOutput: [...n.evaluate(test, exact)],
          };
        })()""",
        settings,
    )


def column(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("single", ["none", "population"])
def test_training_evaluation_and_calibration(tab: Any, single: str) -> None:
    run = stream(tab, steps=60, momentum=0.03, batchSize=4, single=single)
    layer = bn.BatchNorm(1, momentum=0.03, single="population", dtype=torch.float64)
    for batch in run["trained"]:
        layer(column(batch))
    layer.eval()
    assert run["stale"] == pytest.approx([layer.running_mean.item(), layer.running_var.item()], abs=CLOSE)
    assert run["staleOutput"] == pytest.approx(flat(layer(column(run["test"]))), abs=CLOSE)
    bn.calibrate(layer, [column(batch) for batch in run["batches"]])
    assert run["exact"] == pytest.approx([layer.running_mean.item(), layer.running_var.item()], abs=CLOSE)
    assert run["exactOutput"] == pytest.approx(flat(layer(column(run["test"]))), abs=CLOSE)


def test_the_error_of_a_single_value_is_torchs(tab: Any) -> None:
    tab.get_by_label("last batch of an epoch").select_option("error")
    words = tab.locator("#evaluation .verdict").inner_text()
    assert "Training stopped at step 20" in words
    for layer in (torch.nn.BatchNorm1d(1), bn.BatchNorm(1)):
        with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
            layer(torch.ones(1, 1))
    assert "Expected more than 1 value per channel when training" in words


def shown(tab: Any) -> list[float]:
    """The outputs in panel 1's table, back in the order of the points."""
    rows = tab.locator("#batch table.points tr")
    order, outputs = (rows.nth(i).locator("td").all_inner_texts() for i in (0, 4))
    pairs = zip(map(int, order), (float(text.replace("−", "-")) for text in outputs), strict=True)
    return [value for _, value in sorted(pairs)]


@pytest.mark.parametrize("settings", [{}, {"γ (scale)": -1.5, "β (shift)": 0.7, "ε (added to σ²)": 5}])
def test_the_lines_of_panel_1_give_what_it_shows(tab: Any, settings: dict[str, float]) -> None:
    for label, value in settings.items():
        tab.get_by_label(label, exact=True).evaluate(
            "(input, value) => { input.value = value; input.dispatchEvent(new Event('input')); }", value
        )
    names: dict[str, Any] = {}
    exec(tab.locator("#batch .code code").inner_text(), names)
    assert flat(names["y"]) == pytest.approx(shown(tab), abs=6e-4), "three decimals are shown"


def test_the_lines_of_panel_3_give_what_it_shows(tab: Any, capsys: pytest.CaptureFixture[str]) -> None:
    tab.get_by_label("last batch of an epoch").select_option("population")
    run = stream(tab, steps=100, momentum=0.01, batchSize=16, single="population")
    mean = tab.locator("#evaluation [data-value=evalMean]")
    stale = float(mean.inner_text().replace("−", "-"))
    tab.get_by_role("button", name="Calibrate").click()
    lines = tab.locator("#evaluation .code code").inner_text()
    names = {"training_batches": "trained", "batches": "batches"}
    data = {name: [column(batch).float() for batch in run[key]] for name, key in names.items()}
    exec(lines, {**data, "test": column(run["test"]).float()})
    printed = [float(word) for word in capsys.readouterr().out.split()]
    assert printed == pytest.approx([stale, float(mean.inner_text().replace("−", "-"))], abs=6e-4)
