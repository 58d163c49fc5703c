"""The tools of the tests measure what they claim to measure, and they can fail."""

import pytest
import torch
from torch.nn import functional as F

from tests.support.material import LAYOUTS, drifting
from tests.support.oracle import exact, judge


def test_poison():
    for empty in (torch.empty(3), torch.empty_like(torch.ones(3)), torch.ones(1).new_empty(3)):
        assert empty.isnan().all()


def test_judge_prints_error_and_budget(capsys):
    judge("y", torch.tensor([1.0]), torch.tensor([1.0]), torch.tensor([1.5]))
    assert capsys.readouterr().out == "y: error 0, budget 1\n"


@pytest.mark.parametrize("wrong", [[1.0, 2.1], [torch.nan, 2.0], [torch.inf, 2.0]])
def test_judge_fails(wrong):
    with pytest.raises(AssertionError, match=r"error .*, budget"):
        judge("y", torch.tensor(wrong), torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.01]))
    with pytest.raises(AssertionError, match="shape"):
        judge("y", torch.tensor(wrong), torch.tensor([1.0]))


def test_judge_wants_nan_where_there_is_nan():
    judge("y", torch.tensor([torch.nan, torch.inf]), torch.tensor([torch.nan, torch.inf]), budget=0.0)
    with pytest.raises(AssertionError):
        judge("y", torch.tensor([0.0, torch.inf]), torch.tensor([torch.nan, torch.inf]), budget=1.0)


@pytest.mark.parametrize("training", [True, False])
def test_exact_agrees_with_torch_in_float64(training):
    x = drifting(6, 3, 5, dtype=torch.float64)
    mean, var, weight, bias = (torch.rand(3, dtype=torch.float64) + 0.5 for _ in range(4))
    answer = exact(x, mean, var, weight, bias, training, 0.3, grad=torch.ones_like(x))
    y = F.batch_norm(x, mean, var, weight, bias, training, 0.3)
    for name, got, want in [("y", answer.y, y), ("mean", answer.running_mean, mean), ("var", answer.running_var, var)]:
        judge(name, got, want, budget=1e-13)


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_keep_shape_and_values(name):
    x = drifting(4, 3, 5, 7)
    laid = LAYOUTS[name](x)
    assert laid.shape == x.shape
    assert laid.is_contiguous() == (name == "contiguous")
    if name not in ("expanded", "one_sample"):
        assert torch.equal(laid, x)
