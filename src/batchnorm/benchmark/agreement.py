"""Compares results with the same computation in float64, before anything is timed."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batchnorm.backends import backend
from batchnorm.benchmark.cases import Case
from batchnorm.layers import BatchNorm

KINKS = {"relu": 0.0}
Parts = dict[str, Tensor]


class DisagreementError(Exception):
    """Raised if a result is further from float64 than torch's error allows."""


def gradient_for(case: Case) -> Tensor:
    """The case's gradient, set to zero near the activation's kink, where rounding decides between two right answers."""
    gradient, kink = case.gradient(), KINKS.get(case.activation or "")
    if kink is not None:
        z = _exact_preactivation(case)
        reach = 4 * torch.finfo(case.dtype).eps * (1 + z.abs().max())
        gradient = torch.where((z - kink).abs() > reach, gradient, 0)
    return gradient


def affine(case: Case) -> tuple[Tensor, Tensor]:
    """γ and β of every layer of the case."""
    draw = torch.Generator().manual_seed(3)
    weight = torch.rand(case.shape[1], generator=draw) + 0.5
    return weight.to(case.parameter_dtype), torch.randn(case.shape[1], generator=draw).to(case.parameter_dtype)


def _exact_preactivation(case: Case) -> Tensor:
    x, *residual = (t.double() for t in case.inputs())
    weight, bias = (t.double() for t in affine(case))
    z = F.batch_norm(x, None, None, weight, bias, training=True)
    return z + residual[0] if residual else z


def with_affine(layer: nn.Module, case: Case) -> nn.Module:
    """Sets γ and β of the layer to the case's, and returns the layer."""
    for parameter, value in zip(layer.parameters(), affine(case), strict=True):
        parameter.data.copy_(value)
    return layer


def parts(layer: nn.Module, inputs: list[Tensor], gradient: Tensor) -> Parts:
    """Results of one training step of the layer, by name: output, gradients and running statistics."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    y = layer(*leaves)
    y.backward(gradient)
    found = {"output": y.detach()}
    for name, leaf in zip(("input", "residual"), leaves, strict=False):
        found[f"gradient of the {name}"] = _value(leaf.grad)
    for name, parameter in zip(("weight", "bias"), layer.parameters(), strict=True):
        found[f"gradient of the {name}"] = _value(parameter.grad)
        parameter.grad = None
    return found | {name.rpartition(".")[2]: b.clone() for name, b in layer.named_buffers() if b.is_floating_point()}


def _value(gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    return gradient


def check(case: Case, ours: nn.Module, theirs: nn.Module) -> None:
    """Compare one step of both layers with float64.

    Raises:
        DisagreementError: an error of ours above twice torch's own plus eps·max|exact|.
    """
    inputs, gradient = case.inputs(), gradient_for(case)
    wide = with_affine(BatchNorm(case.shape[1], activation=case.activation, dtype=torch.float64), case)
    with backend("reference"):  # torch's float64 sums of many values have larger errors than ours
        exact = parts(wide, [t.double() for t in inputs], gradient.double())
    judge(str(case), parts(ours, inputs, gradient), parts(theirs, inputs, gradient), exact)


def judge(where: str, ours: Parts, theirs: Parts, exact: Parts) -> None:
    """Raise DisagreementError if a part of ours is too far from `exact`."""
    for name, truth in exact.items():
        error, rival = _error(ours[name], truth), _error(theirs[name], truth)
        eps = torch.finfo(ours[name].dtype).eps
        budget = 2 * rival + (8 if truth.dtype is ours[name].dtype else 1) * eps * truth.abs().max().item()
        if not error <= budget:  # also true for NaN
            raise DisagreementError(
                f"{where}: {name} is off by {error:.2e} from float64. torch's is off by {rival:.2e}, and {budget:.2e} "
                "is allowed. The times of a wrong result mean nothing, so none are reported"
            )


def _error(got: Tensor, exact: Tensor) -> float:
    return (got.double() - exact.double()).abs().max().item()
