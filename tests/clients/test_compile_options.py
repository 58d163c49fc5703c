"""Every option and every state of a layer compiles to one graph, fullgraph=True, with the results of eager mode."""

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import batchnorm as bn
from tests.support.material import drifting


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


SHAPE = (6, 4, 5)


def mask() -> Tensor:
    return torch.arange(5) < torch.tensor([5, 4, 3, 2, 5, 1])[:, None]


OPTIONS: dict[str, dict[str, Any]] = {
    "virtual batches": {"virtual_batch_size": 4},
    "renorm": {"renorm": bn.Renorm(2.0, 1.0)},
    "renorm with a warm-up": {"renorm": bn.Renorm(2.0, 1.0, warmup=2)},
    "single": {"virtual_batch_size": 5, "single": "population"},
    "raise": {"nonfinite": "raise"},
    "raise, virtual batches": {"nonfinite": "raise", "virtual_batch_size": 4},
    "propagate": {"nonfinite": "propagate"},
    "average": {"momentum": None, "nonfinite": "raise"},
    "no statistics": {"track_running_stats": False},
    "no parameters": {"affine": False},
    "activation": {"activation": "hardswish"},
}
INPUTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mask": {"mask": mask()},
    "weights": {"mask": mask() * 0.5},
    "lengths": {"lengths": torch.tensor([5, 4, 3, 2, 5, 1])},
    "residual": {"residual": drifting(*SHAPE).double()},
}


def step(layer: nn.Module, call: Any, x: Tensor, inputs: dict[str, Any]) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    layer.zero_grad()
    y = call(leaf, **inputs)
    (y * x.sin()).sum().backward()
    return [y.detach(), leaf.grad, *(p.grad for p in layer.parameters()), *(b.clone() for b in layer.buffers())]


def compiled_as_eager(layer: bn.BatchNorm, inputs: dict[str, Any], steps: int = 2) -> int:
    eager, counter = copy.deepcopy(layer), CompileCounterWithBackend("aot_eager")
    call = torch.compile(layer, fullgraph=True, backend=counter, dynamic=False)
    for number in range(steps):
        x = drifting(*SHAPE, offset=float(number)).double()
        for a, b in zip(step(layer, call, x, inputs), step(eager, eager, x, inputs), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    return counter.frame_count


@pytest.mark.parametrize("option", OPTIONS)
def test_options(option: str) -> None:
    assert compiled_as_eager(bn.BatchNorm1d(4, **OPTIONS[option]).double(), {}) == 1


@pytest.mark.parametrize("given", INPUTS)
def test_inputs(given: str) -> None:
    assert compiled_as_eager(bn.BatchNorm1d(4, activation="silu").double(), INPUTS[given]) == 1


STATES: dict[str, Any] = {
    "frozen": lambda layer: bn.freeze(layer) and nullcontext(),
    "paused": bn.paused,
    "domain": lambda layer: bn.domain(layer, "night", affine=True),
    "evaluation": lambda layer: layer.eval() and nullcontext(),
}


@pytest.mark.parametrize("state", STATES)
def test_states(state: str) -> None:
    layer = bn.BatchNorm1d(4, activation="relu").double()
    layer(drifting(*SHAPE).double())
    context: AbstractContextManager[Any] = STATES[state](layer)
    with context:
        assert compiled_as_eager(layer, {}) == 1


@pytest.mark.parametrize("option", ["windows", "warm-up"])
def test_what_changes_from_step_to_step(option: str) -> None:
    """Windows of two micro-batches, and limits of renormalisation that open over the first three."""
    renorm = bn.Renorm(1.5, 0.5, warmup=3) if option == "warm-up" else None
    eager = bn.BatchNorm1d(4, renorm=renorm).double()
    layer = copy.deepcopy(eager)
    call = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=False)
    windows = [bn.accumulate(net, steps=2) if option == "windows" else nullcontext() for net in (layer, eager)]
    with windows[0], windows[1]:
        for number in range(4):
            x = drifting(*SHAPE, offset=float(number)).double()
            for a, b in zip(step(layer, call, x, {}), step(eager, eager, x, {}), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert layer.num_batches_tracked == (2 if option == "windows" else 4)


def test_a_batch_that_is_not_finite_raises_from_the_graph() -> None:
    model = bn.convert(nn.Sequential(nn.BatchNorm1d(4)), nonfinite="raise")
    call = torch.compile(model, fullgraph=True, backend="aot_eager")
    call(drifting(*SHAPE))
    before = [b.clone() for b in model.buffers()]
    bad = drifting(*SHAPE)
    bad[0, 2] = torch.inf
    with pytest.raises(FloatingPointError, match=r"0: BatchNorm1d\(4\): .*channels \[2\] are not finite"):
        call(bad)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), before, strict=True))
