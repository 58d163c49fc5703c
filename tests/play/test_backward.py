"""Panel 5, the backward pass: the matrix is torch's, the formula's number is in it, and the lines print its column."""

import re
from typing import Any

import pytest
import torch

import batchnorm as bn
from tests.support.page_snippets import call, close, run, shown


def matrix(tab: Any) -> torch.Tensor:
    rows = tab.locator("#backward .matrix").first.locator("tbody tr").all()
    texts = [row.locator("td").all_inner_texts() for row in rows]
    return torch.tensor([[float(text.replace("−", "-")) for text in row] for row in texts])


def column(tab: Any) -> torch.Tensor:
    return run(shown(tab, "backward"))["x"].grad.flatten()


@pytest.mark.parametrize("frozen", [None, {"mean": 0.5, "variance": 2}])
def test_the_matrix_is_that_of_automatic_differentiation(tab: Any, frozen: dict[str, float] | None) -> None:
    x = torch.randn(5, 1, dtype=torch.float64) * 3 + 7
    layer = bn.BatchNorm1d(1).double()
    layer.weight.data.fill_(1.5)
    if frozen:
        layer.running_mean.fill_(frozen["mean"])
        layer.running_var.fill_(frozen["variance"])
        bn.freeze(layer)
    found = call(tab, "([x, frozen]) => network.dependences(x, { gamma: 1.5, frozen })", [x.flatten().tolist(), frozen])
    expected = torch.autograd.functional.jacobian(layer, x).squeeze()  # (output, sample)
    close(found, expected.T)


def test_the_lines_print_the_chosen_column(tab: Any) -> None:
    assert torch.allclose(column(tab), matrix(tab)[:, 2], atol=6e-3)
    tab.click("#backward .matrix button >> nth=4")  # sample 1, output 5
    assert torch.allclose(column(tab), matrix(tab)[:, 4], atol=6e-3)
    value = tab.locator("#backward .steps li b").last.inner_text().replace("−", "-")
    assert float(value) == pytest.approx(column(tab)[0].item(), abs=6e-5)


def test_the_formula_follows_the_settings(tab: Any) -> None:
    slider = tab.locator("#backward input[type=range]")
    slider.nth(2).focus()
    slider.nth(2).press("Home")  # γ = −2
    assert "fill_(-2)" in shown(tab, "backward")
    assert torch.allclose(column(tab), matrix(tab)[:, 2], atol=6e-3)
    totals = [float(text.replace("−", "-")) for text in tab.locator("#backward .numbers dd").all_inner_texts()]
    assert totals[0] == 0
    assert abs(totals[1]) < 1e-3


def test_frozen_samples_are_independent(tab: Any) -> None:
    tab.check("#backward input[type=checkbox]")
    found = matrix(tab)
    assert torch.equal(found, found.diag().diag())
    assert torch.allclose(column(tab), found[:, 2], atol=6e-3)
    assert "independent" in tab.inner_text("#backward .verdict")


def test_two_samples_leave_nothing(tab: Any) -> None:
    slider = tab.locator("#backward input[type=range]").first
    slider.focus()
    slider.press("Home")
    assert matrix(tab).abs().max() < 0.01
    assert "two samples" in tab.inner_text("#backward .verdict")


def test_arrow_keys_choose_a_cell(tab: Any) -> None:
    tab.focus("#backward .matrix button[aria-pressed=true]")
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("ArrowRight")
    chosen = tab.locator("#backward .matrix button[aria-pressed=true]")
    assert re.match("gradient of sample 2 from output 4", chosen.get_attribute("aria-label"))
    assert tab.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    assert tab.locator("#backward .matrix button[tabindex='0']").count() == 1


def test_the_words_change_with_the_language(tab: Any) -> None:
    tab.click(".languages >> text=한국어")
    assert tab.inner_text("#backward h2").endswith("역전파")
    assert "샘플" in tab.inner_text("#backward .see")
