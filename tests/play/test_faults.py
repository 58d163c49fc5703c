"""Panel 4, break it and cure it: its numbers are torch's and this package's, and its lines of Python do the same."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import batchnorm as bn
from tests.support.page_snippets import call, close, run, shown


def choose(tab: Any, fault: str) -> str:
    tab.click(f"#faults .choices button >> text={fault}")
    return shown(tab, "faults")


def row(tab: Any, name: str) -> list[str]:
    """The numbers of the row: without the cure, with it, the right value."""
    cells = tab.locator("#faults .compare tbody tr").filter(has_text=name).locator("td")
    return [text.replace("−", "-") for text in cells.all_inner_texts()]


def doubles(values: Any, *shape: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(shape)


@pytest.fixture(autouse=True)
def double() -> Any:
    """The page computes in float64; so do the layers that its lines make."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.filterwarnings("ignore:.*not finite:RuntimeWarning")
def test_a_nan_batch(tab: Any) -> None:
    lines = choose(tab, "A NaN batch")
    found = call(tab, "() => network.nanBatch({ bad: 20 })")
    batches = [doubles(x, 16, 3) for x in found["inputs"]]
    theirs = nn.BatchNorm1d(3)
    for batch in batches:
        theirs(batch)
    ours = run(lines, batches=batches)["layer"]
    sample = doubles(found["sample"], 1, 3)
    close(found["outputs"]["theirs"], theirs.eval()(sample).flatten())
    close(found["outputs"]["ours"], ours.eval()(sample).flatten())
    assert found["skipped"] == ours.skipped_batches == 1
    assert row(tab, "running mean of channel 2") == ["NaN", f"{ours.running_mean[1]:.4f}", "–"]
    assert not theirs.running_mean[1].isfinite()


def test_padding(tab: Any) -> None:
    lines = choose(tab, "Padding")
    found = call(tab, "() => network.padding({ shortest: 3 })")
    x, lengths = doubles(found["x"], 8, 1, 12), torch.tensor(found["lengths"])
    ours = run(lines, x=x, lengths=lengths)
    close(found["ours"]["y"], ours["y"].flatten())
    close(found["theirs"]["y"], nn.BatchNorm1d(1)(x).flatten())
    close(found["ours"]["mean"], ours["layer"].running_mean.squeeze() * 10)
    real = torch.arange(12) < lengths[:, None]
    assert row(tab, "mean of the real outputs") == [
        f"{nn.BatchNorm1d(1)(x)[:, 0][real].mean():.4f}",
        "0.0000",
        "0.0000",
    ]


def test_classes_in_order(tab: Any) -> None:
    lines = choose(tab, "Classes in order")
    found = call(tab, "() => network.sortedStatistics()")
    x = doubles(found["x"], -1, 1)
    theirs = nn.BatchNorm1d(1)
    for batch in x.split(16):
        theirs(batch)
    close(found["sorted"][-1], theirs.running_mean.squeeze())
    model = run(lines, data=x, model=nn.Sequential(bn.BatchNorm1d(1)))["model"]
    close(found["exact"]["mean"], model[0].running_mean.squeeze())
    close(found["exact"]["unbiased"], model[0].running_var.squeeze())
    wrong, shuffled, right = (float(text) for text in row(tab, "running mean after the epoch"))
    assert right == round(found["exact"]["mean"], 4)
    assert abs(wrong - right) > 1 > abs(shuffled - right)
    accuracy = [float(text.split(" ")[0]) for text in row(tab, "accuracy of a small network")[:2]]
    assert accuracy[0] + 20 < accuracy[1]


def test_micro_batches(tab: Any) -> None:
    lines = choose(tab, "Micro-batches")
    found = call(tab, "() => network.microBatches({ size: 4 })")
    x, labels = doubles(found["inputs"], 32, 2), torch.tensor(found["labels"], dtype=torch.int64)
    layers: list[nn.Module] = []
    for inputs in (2, 8, 8):
        layers += [nn.Linear(inputs, 8), bn.BatchNorm1d(8), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(8, 2))
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), found["network"]["parameters"], strict=True):
            parameter.copy_(doubles(value["value"], *parameter.shape))

    def gradient(model: nn.Module) -> torch.Tensor:
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])

    whole, added = copy.deepcopy(model), copy.deepcopy(model)
    nn.functional.cross_entropy(whole(x), labels).backward()
    for part, label in zip(x.split(4), labels.split(4), strict=True):
        (nn.functional.cross_entropy(added(part), label) / 8).backward()
    run(lines, model=model, x=x, labels=labels, optimizer=torch.optim.SGD(model.parameters(), lr=0.0))
    close(found["whole"], gradient(whole))
    close(found["added"], gradient(added))
    close(found["merged"], gradient(model))
    off = (gradient(added) - gradient(whole)).norm() / gradient(whole).norm()
    assert float(row(tab, "distance from the gradient")[0]) == pytest.approx(off.item(), rel=1e-2)


def test_freezing(tab: Any) -> None:
    lines = choose(tab, "Freezing")
    found = call(tab, "() => network.freezing({ shift: 3 })")
    later = [doubles(x, 4, 1) for x in found["later"]]
    model = nn.Sequential(nn.BatchNorm1d(1))
    first = doubles(found["first"], -1, 1)
    model[0].running_mean.copy_(first.mean(0))
    model[0].running_var.copy_(first.var(0))
    sample = torch.ones(1, 1)
    close(found["before"], model.eval()(sample).squeeze())
    theirs = copy.deepcopy(model).train()
    frozen = run(lines, model=model, x=later[0])["model"]
    for x in later:
        theirs(x)
        frozen(x)
    close(found["theirs"]["output"], theirs.eval()(sample).squeeze())
    close(found["ours"]["output"], frozen.eval()(sample).squeeze())
    assert row(tab, "output for x = 1")[:2] == [f"{theirs(sample).item():.4f}", f"{frozen(sample).item():.4f}"]


def test_the_slider_changes_the_numbers_and_the_lines(tab: Any) -> None:
    choose(tab, "Micro-batches")
    slider = tab.locator("#faults input[type=range]")
    slider.focus()
    for _ in range(3):
        slider.press("ArrowRight")
    assert tab.inner_text("#faults output") == "32"
    assert "micro_batch_size=32" in shown(tab, "faults")
    assert float(row(tab, "distance from the gradient")[0]) < 1e-12
    assert "nothing to cure" in tab.inner_text("#faults .verdict")


@pytest.mark.parametrize("language", ["English", "한국어"])
def test_every_fault_in_both_languages(tab: Any, language: str) -> None:
    tab.click(f".languages >> text={language}")
    buttons = tab.locator("#faults .choices button")
    assert buttons.count() == 5
    for index in range(5):
        buttons.nth(index).click()
        assert buttons.nth(index).get_attribute("aria-pressed") == "true"
        assert tab.locator("#faults .compare tbody tr").count() >= 1
        assert tab.locator("#faults .verdict").inner_text()
