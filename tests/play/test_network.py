"""Panel 2, a network learns: its engine computes what torch and this package compute, and the page shows it live."""

import importlib.util
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import batchnorm as bn
from tests.support.page_snippets import call, close, run, shown

BATCH_NORM = """({ x, dy, gamma, beta, eps, training }) => {
  const layer = new network.BatchNorm(gamma.length, { eps });
  layer.weight.value.set(gamma);
  layer.bias.value.set(beta);
  layer.statistics.mean.set(gamma.map((_, c) => c - 0.5));
  layer.statistics.variance.set(gamma.map((_, c) => c + 0.5));
  const { outputs, saved } = layer.forward([Float64Array.from(x)], training);
  const [dx] = layer.backward([Float64Array.from(dy)], saved);
  return { y: outputs[0], dx, dgamma: layer.weight.gradient, dbeta: layer.bias.gradient, ...layer.statistics };
}"""


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layer_class", [bn.BatchNorm1d, nn.BatchNorm1d], ids=["batchnorm", "torch"])
def test_batch_norm_both_ways_and_running_statistics(tab: Any, training: bool, layer_class: type[nn.Module]) -> None:
    layer = layer_class(3, eps=1e-3).double().train(training)
    x = (torch.randn(7, 3, dtype=torch.float64) * torch.tensor([1, 5, 0.1]) + 20).requires_grad_()
    dy = torch.randn(7, 3, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.5, -0.5, 2]))
        layer.bias.copy_(torch.tensor([0.1, 0, -3]))
        layer.running_mean.copy_(torch.arange(3) - 0.5)
        layer.running_var.copy_(torch.arange(3) + 0.5)
    sent = {"gamma": layer.weight.tolist(), "beta": layer.bias.tolist(), "eps": 1e-3, "training": training}
    found = call(tab, BATCH_NORM, {"x": x.flatten().tolist(), "dy": dy.flatten().tolist(), **sent})
    y = layer(x)
    y.backward(dy)
    close(found["y"], y.flatten())
    close(found["dx"], x.grad.flatten())
    close(found["dgamma"], layer.weight.grad)
    close(found["dbeta"], layer.bias.grad)
    close(found["mean"], layer.running_mean)
    close(found["variance"], layer.running_var)


STEPS = """(settings) => {
  const comparison = new network.Comparison(settings);
  const { data, trainers } = comparison;
  const batches = new network.Batches(data.train.labels.length, comparison.settings.batchSize, comparison.settings);
  const parameters = () => trainers.map(({ network }) => network.parameters.map(({ value }) => value.slice()));
  const before = parameters();
  const steps = [1, 2, 3].map(() => {
    const indices = batches.next();
    comparison.step();
    const labels = indices.map((i) => data.train.labels[i]);
    const inputs = network.rowsOf(data.train.inputs, data.features, indices);
    return { inputs, labels, losses: trainers.map(({ loss }) => loss) };
  });
  const outputs = trainers.map((trainer) => trainer.network.evaluate(data.test.inputs));
  const { features, classes, test } = data;
  return { before, steps, after: parameters(), outputs, test: test.inputs, features, classes };
}"""


@pytest.mark.parametrize(
    "settings",
    [
        {"data": "moons", "depth": 4, "rate": 0.1, "activation": "relu"},
        {"data": "clusters", "depth": 3, "rate": 0.3, "activation": "tanh", "start": "he", "batchSize": 8},
        {"data": "digits", "depth": 3, "rate": 0.05, "start": "large"},
    ],
    ids=lambda settings: settings["data"],
)
@pytest.mark.parametrize("arm", [0, 1], ids=["plain", "norm"])
def test_whole_steps_of_training(tab: Any, settings: dict[str, Any], arm: int) -> None:
    found = call(tab, STEPS, settings)
    activation = {"relu": nn.ReLU, "tanh": nn.Tanh}[settings.get("activation", "relu")]
    layers: list[nn.Module] = []
    width = found["features"]
    for _ in range(settings["depth"]):
        layers += [nn.Linear(width, 16), *([bn.BatchNorm1d(16)] if arm else []), activation()]
        width = 16
    model = nn.Sequential(*layers, nn.Linear(width, found["classes"])).double()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), found["before"][arm], strict=True):
            parameter.copy_(torch.tensor(value, dtype=torch.float64).reshape(parameter.shape))
    optimizer = torch.optim.SGD(model.parameters(), lr=settings["rate"], momentum=0.9)
    for step in found["steps"]:
        x = torch.tensor(step["inputs"], dtype=torch.float64).reshape(-1, found["features"])
        loss = nn.functional.cross_entropy(model(x), torch.tensor(step["labels"], dtype=torch.int64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        close(step["losses"][arm], loss)
    for parameter, value in zip(model.parameters(), found["after"][arm], strict=True):
        close(value, parameter.flatten(), 1e-7)
    test = torch.tensor(found["test"], dtype=torch.float64).reshape(-1, found["features"])
    close(found["outputs"][arm], model.eval()(test).flatten(), 1e-6)


@pytest.mark.parametrize("preset", ["deep", "exploding", "fast", "he", "shallow", "tiny"])
def test_the_lines_make_the_network_shown(tab: Any, preset: str) -> None:
    tab.select_option("#network .controls select >> nth=0", preset)
    names = run(shown(tab, "network"))
    model = names["model"]
    depth = int(tab.input_value("#network input[type=range] >> nth=0"))
    assert sum(isinstance(layer, bn.BatchNorm1d) for layer in model) == depth
    assert model(torch.randn(8, 2)).shape == (8, 2)
    rate = tab.inner_text("#network output >> nth=1")
    assert [names["optimizer"].param_groups[0][name] for name in ("lr", "momentum")] == [float(rate), 0.9]
    # the first weights of the engine and of the lines have the same spread, over hundreds of values
    script = "() => network.build({ features: 2, classes: 2, width: 16, activation: 'relu', norm: false, seed: 1, %s })"
    start = tab.input_value("#network select >> nth=2")
    built = call(tab, script % f"depth: {depth}, start: '{start}'")["layers"][2:-2:2]
    hidden = [layer for layer in model if isinstance(layer, nn.Linear) and layer.in_features == 16][:-1]
    for name in ("weight", "bias"):
        ours = torch.tensor([layer[name]["value"] for layer in built])
        theirs = torch.stack([getattr(layer, name).flatten() for layer in hidden])
        assert ours.std() == pytest.approx(theirs.std().item(), rel=0.15, abs=0.001)


def steps(tab: Any) -> int:
    return int(tab.get_attribute("#network", "data-steps") or 0)


def until(check: Callable[[], bool]) -> None:
    """Wait for it, from outside: the page's policy forbids what Playwright's wait_for_function does inside."""
    ends = time.monotonic() + 60
    while not check():
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_within_seconds_the_page_shows_that_batch_norm_learns(tab: Any) -> None:
    tab.locator("#network").scroll_into_view_if_needed()
    until(lambda: steps(tab) > 300)
    verdict = tab.inner_text("#network .verdict")
    shares = [int(tab.inner_text(f"#network [data-arm={arm}] .score b").split(" %")[0]) for arm in ("plain", "norm")]
    assert shares[0] < 80
    assert shares[1] > 95
    assert "Without batch norm, the gradient at the first layer is" in verdict
    assert tab.get_attribute("#network .verdict", "class") == "verdict good"


def test_pause_step_and_reset(tab: Any) -> None:
    tab.locator("#network").scroll_into_view_if_needed()
    until(lambda: steps(tab) > 20)
    tab.click("#network button >> text=Pause")
    tab.wait_for_timeout(300)
    paused = steps(tab)
    tab.click("#network button >> text=10 steps")
    until(lambda: steps(tab) == paused + 10)
    tab.click("#network button >> text=Start again")
    until(lambda: steps(tab) == 1)


def test_it_trains_only_where_it_is_seen(tab: Any) -> None:
    tab.locator("#network").scroll_into_view_if_needed()
    until(lambda: steps(tab) > 20)
    tab.evaluate("scrollTo({ top: document.body.scrollHeight, behavior: 'instant' })")

    def stands() -> bool:
        before = steps(tab)
        tab.wait_for_timeout(500)
        return steps(tab) == before

    until(stands)
    tab.evaluate("scrollTo({ top: 0, behavior: 'instant' })")
    tab.locator("#network").scroll_into_view_if_needed()
    until(lambda: not stands())


def test_no_motion_for_those_who_ask_for_none(browser: Any, page: Any) -> None:
    found = browser.new_page(viewport={"width": 390, "height": 844}, reduced_motion="reduce")
    found.goto(page.as_uri())
    found.locator("#network").scroll_into_view_if_needed()
    until(lambda: steps(found) == 1)
    found.wait_for_timeout(400)
    assert steps(found) == 1
    assert found.inner_text("#network button.primary") == "Play"
    found.close()


def test_settings_survive_a_change_of_language(tab: Any) -> None:
    tab.select_option("#network .controls select >> nth=0", "tiny")
    tab.click("text=한국어")
    assert tab.inner_text("#network h2").endswith("학습하는 신경망")
    assert tab.input_value("#network .controls select >> nth=0") == "tiny"
    assert "배치 정규화 없음" in tab.inner_text("#network .arms")
    until(lambda: steps(tab) >= 1)


def test_frames_stay_smooth_while_it_trains(tab: Any) -> None:
    tab.locator("#network").scroll_into_view_if_needed()
    until(lambda: steps(tab) > 10)
    times = tab.evaluate("""() => new Promise((done) => {
      const times = [];
      const frame = (now) => times.push(now) < 90 ? requestAnimationFrame(frame) : done(times);
      requestAnimationFrame(frame);
    })""")
    between = sorted(b - a for a, b in itertools.pairwise(times))
    assert between[len(between) // 2] < 1000 / 30


def test_the_digits_are_those_of_the_command() -> None:
    pytest.importorskip("sklearn")
    path = Path(bn.__file__).parent / "play" / "page" / "network" / "make_digits.py"
    spec = importlib.util.spec_from_file_location("make_digits", path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert path.with_name("digits.js").read_text(encoding="utf-8") == made.module()
