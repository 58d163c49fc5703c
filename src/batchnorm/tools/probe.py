"""Compare two layers on small inputs: outputs, gradients and state, in training and in evaluation."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

TOLERANCE = 1e-7  # relative, in float64: far above rounding, and far below what another eps or formula changes


def bare_copy(module: nn.Module) -> nn.Module:
    """A copy in float64 on the CPU, without hooks, whose tensors hold values other than the defaults."""
    twin = copy.deepcopy(module)
    for part in twin.modules():
        for name, value in vars(part).items():
            if name.endswith("_hooks") and isinstance(value, dict):
                value.clear()
    twin = twin.double().cpu()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in twin.state_dict().items():
            if tensor.is_floating_point():
                values = torch.rand(tensor.shape, generator=draw, dtype=torch.float64)
                # with a small variance, another eps changes the output
                tensor.copy_(values * 1e-4 + 1e-5 if name.endswith("running_var") else values + 0.5)
    return twin


def disagreement(theirs: nn.Module, ours: nn.Module) -> str | None:
    """The first difference of two layers with the same state, or None."""
    shapes = [shape for shape in _shapes(ours) if _accepts(ours, shape)]
    for shape in shapes:
        draw = torch.Generator().manual_seed(0)
        for step, training in enumerate((True, True, False)):
            if training and isinstance(theirs, nn.SyncBatchNorm):
                continue  # torch's does not train on a CPU
            x = torch.randn(shape, generator=draw, dtype=torch.float64) * 2 + 1
            with torch.random.fork_rng(devices=[]):
                wanted, got = (dict(_results(m.train(training), x)) for m in (theirs, ours))
            for name, value in wanted.items():
                if name in got and _error(got[name], value) > TOLERANCE:
                    where = f"in training, step {step + 1}" if training else "in evaluation"
                    return f"{name} of an input {shape} differs {where} by {_error(got[name], value):.1e}"
    return None


def _shapes(layer: nn.Module) -> list[tuple[int, ...]]:
    channels = int(getattr(layer, "num_features", 1))
    return [(4, channels), (4, channels, 5), (4, channels, 3, 2), (4, channels, 2, 3, 2)]


def _accepts(ours: nn.Module, shape: tuple[int, ...]) -> bool:
    try:
        ours._check_input_dim(torch.empty(shape))  # type: ignore[operator]  # a method of every batch norm
    except ValueError:
        return False
    return True


def _results(module: nn.Module, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    torch.manual_seed(0)  # for dropout
    leaf = x.clone().requires_grad_()
    module.zero_grad()
    y = module(leaf * 1)  # a copy: an activation in place may write to it
    (y * x.sin()).sum().backward()
    yield "the output", y.detach()
    assert leaf.grad is not None
    yield "the gradient of the input", leaf.grad
    for name, p in module.named_parameters():
        if p.grad is not None:
            yield f"the gradient of {name}", p.grad
    for name, tensor in module.state_dict().items():
        yield f"the state {name}", tensor.detach().clone()


def _error(got: Tensor, wanted: Tensor) -> float:
    if got.shape != wanted.shape:
        return float("inf")
    scale = max(wanted.double().abs().max().item(), 1e-12) if wanted.numel() else 1.0
    difference = (got.double() - wanted.double()).abs().max().item() if wanted.numel() else 0.0
    return difference / scale if difference == difference else float("inf")
