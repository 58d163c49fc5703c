"""Errors name what was expected, what was passed, the remedy, and the layer by its path in the model."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import batchnorm as bn
from tests.support.material import drifting

SHAPE = (4, 3, 5)


def layer(**options: Any) -> bn.BatchNorm1d:
    return bn.BatchNorm1d(3, **options)


def x() -> torch.Tensor:
    return drifting(*SHAPE)


CASES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a mask of numpy": (
        lambda: layer()(x(), mask=np.ones((4, 5), bool)),
        TypeError,
        r"expected mask to be a tensor, got ndarray; pass torch\.as_tensor\(mask\)",
    ),
    "a mask as a list": (
        lambda: layer()(x(), mask=[[True] * 5] * 4),
        TypeError,
        r"expected mask to be a tensor, got list; pass torch\.as_tensor\(mask\)",
    ),
    "lengths as a list": (
        lambda: layer()(x(), lengths=[1, 2, 3, 4]),
        TypeError,
        r"expected lengths to be a tensor, got list; pass torch\.as_tensor\(lengths\)",
    ),
    "lengths of an input without positions": (
        lambda: layer()(x()[:, :, 0], lengths=torch.tensor([1, 2, 3, 4])),
        ValueError,
        r"lengths need an input \(N, C, L\), got \(4, 3\); pass mask=",
    ),
    "an input of numpy": (
        lambda: layer()(x().numpy()),
        TypeError,
        r"expected a tensor \(N, C, \*\), got ndarray; pass torch\.as_tensor\(input\)",
    ),
    "a group by its name": (
        lambda: layer(process_group="world"),
        ValueError,
        r"process_group must be True or a process group, or None; got 'world'",
    ),
    "renorm=True": (lambda: layer(renorm=True), ValueError, r"renorm must be a bn\.Renorm, or None; got True"),
    "limits of renorm that are none": (
        lambda: bn.Renorm(r_max=0.5),
        ValueError,
        r"expected r_max ≥ 1, d_max ≥ 0 and warmup ≥ 0, got Renorm\(r_max=0\.5",
    ),
    "freezing what has no statistics": (
        lambda: layer(track_running_stats=False).freeze(),
        ValueError,
        r"has no running statistics to normalise by: it cannot be frozen",
    ),
    "populations of what keeps none": (
        lambda: layer(track_running_stats=False).add_bank("night"),
        ValueError,
        r"has no running statistics, so there is nothing for `bn\.domain` to switch",
    ),
    "a mask in the residual's place": (
        lambda: layer()(x(), torch.ones(4, 5, dtype=torch.bool)),
        TypeError,
        r"expected a floating-point residual, as the input, got torch\.bool; pass a mask by its name, mask=",
    ),
    "a whole mask in the residual's place, in evaluation": (
        lambda: layer().eval()(x(), torch.ones(SHAPE, dtype=torch.bool)),
        TypeError,
        r"got torch\.bool; pass a mask by its name, mask=",
    ),
    "weights in the residual's place": (
        lambda: layer()(x(), torch.ones(4, 5)),
        RuntimeError,
        r"expected residual of shape \(4, 3, 5\), as the input, got \(4, 5\); pass a mask by its name, mask=",
    ),
    "a residual of whole numbers": (
        lambda: layer()(x(), torch.ones(SHAPE, dtype=torch.int64)),
        TypeError,
        r"floating-point residual, as the input, got torch\.int64; convert it: residual\.to\(torch\.float32\)",
    ),
    "a number as residual": (
        lambda: layer()(x(), 3),
        TypeError,
        "expected residual to be a tensor, got int",
    ),
    "a bfloat16 layer": (
        lambda: layer().bfloat16()(x()),
        RuntimeError,
        r"expected running_mean to have torch\.float32.* got torch\.bfloat16: convert the input "
        r"\(input\.to\(torch\.bfloat16\)\) or the layer \(layer\.to\(torch\.float32\)\)",
    ),
    "a bfloat16 layer in evaluation": (
        lambda: layer().bfloat16().eval()(x()),
        RuntimeError,
        r"convert the input \(input\.to\(torch\.bfloat16\)\)",
    ),
    "a sparse input": (
        lambda: layer()(x().to_sparse()),
        RuntimeError,
        r"expected the input to be a dense tensor, got torch\.sparse_coo; pass \.to_dense\(\)",
    ),
    "a nested input": (
        lambda: layer()(torch.nested.nested_tensor([torch.ones(3, 4), torch.ones(3, 2)], layout=torch.strided)),
        RuntimeError,
        "the input is a nested tensor; pad it",
    ),
    "no eps": (lambda: layer(eps=None), TypeError, "eps must be a number, got None"),
    "no eps, set later": (lambda: later(eps=None)(x()), TypeError, "eps must be a number, got None"),
    "no eps for the function": (
        lambda: bn.batch_norm(x(), None, None, training=True, eps=None),
        TypeError,
        "eps must be a number, got None",
    ),
    "momentum as text": (lambda: layer(momentum="0.1"), TypeError, "momentum must be a number, got '0.1'"),
    "a truth as virtual batch size": (
        lambda: layer(virtual_batch_size=True),
        ValueError,
        "virtual_batch_size must be a number of samples ≥ 1, or None; got True",
    ),
    "half a micro-batch": (
        lambda: bn.accumulate(layer(), steps=2.5).__enter__(),
        ValueError,
        r"steps must be a whole number of micro-batches ≥ 1, got 2\.5",
    ),
    "a class": (lambda: bn.convert(nn.BatchNorm1d), TypeError, "the class BatchNorm1d: make one first"),
    "a class to freeze": (lambda: bn.freeze(nn.BatchNorm1d), TypeError, "the class BatchNorm1d: make one first"),
    "a class to fold": (lambda: bn.fold(nn.BatchNorm1d), TypeError, "the class BatchNorm1d: make one first"),
}


def later(**attributes: Any) -> bn.BatchNorm1d:
    made = layer()
    vars(made).update(attributes)
    return made


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
@pytest.mark.parametrize("case", CASES)
def test_what_was_expected_what_came_and_what_to_do(case: str) -> None:
    call, error, says = CASES[case]
    with pytest.raises(error, match=says):
        call()


@pytest.mark.parametrize(
    ("given", "error"),
    [(torch.ones(1, 3), ValueError), (torch.ones(4, 2), RuntimeError), (torch.ones(4), ValueError), (None, TypeError)],
    ids=["one value", "channels", "rank", "no tensor"],
)
def test_the_layer_is_named_by_its_path(given: Any, error: type[Exception]) -> None:
    model = nn.ModuleDict({"encoder": nn.Sequential(nn.Identity(), nn.BatchNorm1d(3))})
    with pytest.raises(error, match=r"^encoder\.1: BatchNorm1d\(3\): "):
        bn.convert(model)["encoder"](given)


def test_an_error_of_another_kind_stays_what_it_is() -> None:
    """Errors of libraries carry more than a text; only plain ones are made again with the layer's name."""

    class SpecialError(RuntimeError):
        pass

    def fail(*_: Any) -> None:
        raise SpecialError

    model = bn.convert(nn.Sequential(nn.BatchNorm1d(3)))
    model[0]._check_input_dim = fail
    with pytest.raises(SpecialError):
        model(x())


def test_a_statistic_that_is_not_finite_is_named_by_path() -> None:
    model = bn.convert(nn.ModuleDict({"head": nn.Sequential(nn.BatchNorm1d(3))}), nonfinite="raise")
    bad = x()
    bad[0, 1] = torch.nan
    with pytest.raises(FloatingPointError, match=r"^head\.0: BatchNorm1d\(3\), step 1: .*channels \[1\]"):
        model["head"](bad)
