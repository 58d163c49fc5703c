"""torch's own operator for the plain case, as accelerators run it: torch's passes over memory, and little beside them.

On CPU `bn.backend("aten")` runs the same code, so that a dispatch mode can count what an accelerator would launch.
"""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import batchnorm as bn
from tests.support.material import drifting

LAUNCHES = 17  # of one value a channel; a step of the layer on an accelerator takes no more


class Launches(TorchDispatchMode):
    """Counts results as large as the batch, by operator, and small ones; reads by the host are errors."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.large, self.small = size, [], 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        assert "_local_scalar_dense" not in name, "the host waits for the device"
        out = func(*args, **(kwargs or {}))
        first = out[0] if isinstance(out, (tuple, list)) else out
        if not isinstance(first, Tensor) or "detach" in name or "unbind" in name or "empty" in name:
            return out  # no work for the device
        if first.numel() >= self.size:
            self.large.append(name)
        else:
            self.small += 1
        return out


def launches(layer: nn.Module, x: Tensor) -> Launches:
    x = x.clone().requires_grad_()
    grad = torch.ones_like(x)
    layer(x)
    with Launches(x.numel()) as counted:
        layer(x).backward(grad)
    return counted


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("nonfinite", ["skip", "propagate"])
@pytest.mark.parametrize("state", ["train", "eval", "frozen", "untracked"])
def test_the_passes_over_memory_are_torchs(state: str, nonfinite: str, momentum: float | None) -> None:
    x = drifting(4, 3, 5, 5)
    options = {"momentum": momentum, "track_running_stats": state != "untracked"}
    theirs, ours = nn.BatchNorm2d(3, **options), bn.BatchNorm2d(3, nonfinite=nonfinite, **options)
    if state in ("eval", "frozen"):
        theirs.eval()
        ours.eval()
    if state == "frozen":
        bn.freeze(ours.train())
    with bn.backend("aten"):
        counted = launches(ours, x)
    if momentum is None and state == "train":  # torch's own layer reads its counter on the host
        expected = ["aten.native_batch_norm.default", "aten.native_batch_norm_backward.default"]
    else:
        expected = launches(theirs, x).large
    assert counted.large == expected
    assert counted.small <= LAUNCHES


def test_propagating_layers_launch_what_torchs_does() -> None:
    x = drifting(4, 3, 5, 5)
    with bn.backend("aten"):
        ours = launches(bn.BatchNorm2d(3, nonfinite="propagate"), x)
    theirs = launches(nn.BatchNorm2d(3), x)
    assert (ours.large, ours.small) == (theirs.large, theirs.small)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("momentum", [0.3, None])
def test_the_population_moves_as_on_the_cpu(momentum: float | None, dtype: torch.dtype) -> None:
    """Good batches, one with a NaN in a channel, and a good one again."""
    batches = [(drifting(4, 3, 5, 5) + step).to(dtype) for step in range(4)]
    batches[2][0, 1, 0, 0] = torch.nan
    results = {}
    for backend in ("aten", "reference"):
        layer = bn.BatchNorm2d(3, momentum=momentum, dtype=dtype)
        with bn.backend(backend):
            for step, x in enumerate(batches):
                with pytest.warns(RuntimeWarning, match="not finite") if step == 2 else nullcontext():
                    layer(x)
        assert layer.skipped_batches == 1
        assert layer.num_batches_tracked == 4
        results[backend] = layer.running_mean, layer.running_var
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]  # torch's sums are float32's
    for ours, exact in zip(results["aten"], results["reference"], strict=True):
        torch.testing.assert_close(ours, exact, rtol=tolerance, atol=tolerance)
