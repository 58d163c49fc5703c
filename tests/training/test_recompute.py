"""Gradients under `recompute` are the same bits, with every option, and less is kept for them."""

import copy
import pickle
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from torch import nn

import batchnorm as bn
from tests.support.backends import needs_native
from tests.support.option_matrix import SETTINGS, Setting, data, layer_for, take_step
from tests.support.oracle import ACTIVATIONS
from tests.training.recompute_cases import (
    both,
    images,
    kept,
    plain,
    residual,
    same,
)

every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)


pytestmark = pytest.mark.filterwarnings("ignore:.*are not finite:RuntimeWarning")


OPTIONS = {
    "none": {},
    "virtual": {"virtual_batch_size": 2},
    "renorm": {"renorm": bn.Renorm(1.5, 0.5)},
    "cumulative": {"momentum": None},
    "no affine": {"affine": False},
    "no bias": {"bias": False},
    "no population": {"track_running_stats": False},
    "raises": {"nonfinite": "raise"},
}


@every_activation
@pytest.mark.parametrize("make", [plain, residual])
@pytest.mark.parametrize("chain", [False, True])
def test_the_same_bits(make, activation, chain) -> None:
    assert same(*both(make(activation), images(), chain))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("make", [plain, residual])
def test_the_same_bits_with_options(make, options) -> None:
    assert same(*both(make("silu", **OPTIONS[options]), images()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_same_bits_in_every_dtype_and_layout(dtype, layout) -> None:
    model = residual("gelu").to(dtype).to(memory_format=layout)
    assert same(*both(model, images(dtype).contiguous(memory_format=layout)))


@pytest.mark.parametrize("state", ["eval", "frozen", "fully frozen"])
def test_by_the_population(state) -> None:
    model = residual()
    if state == "eval":
        model.eval()
    else:
        bn.freeze(model, affine=state == "fully frozen")
    x = images()
    assert same(*both(model, x))
    with bn.recompute(model):
        less = kept(model, x)
    assert less < kept(model, x)


@pytest.mark.parametrize("virtual", [None, 2])
def test_masks(virtual) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv1d(3, 4, 3, padding=1), nn.Conv1d(4, 4, 3)
            self.norm = bn.BatchNorm1d(4, activation="silu", virtual_batch_size=virtual, single="population")

        def forward(self, x):
            y = self.norm(self.conv1(x), lengths=torch.tensor([9, 2, 5, 7]))
            return self.conv2(y)

    model, x = Masked(), torch.randn(4, 3, 9)
    assert same(*both(model, x))
    more = kept(model, x)
    with bn.recompute(model):
        less = kept(model, x)
    assert more - less == 4 * 4 * 9 * 4  # the norm's output


@needs_native
def test_each_output_is_kept_no_more() -> None:
    """After each of the two norms stands a layer that saves its input; the second through a view."""
    model, x = plain("silu"), images()
    more = kept(model, x)
    with bn.recompute(model):
        less = kept(model, x)
    outputs = 4 * (4 * 8 * 6 * 6 + 4 * 8 * 4 * 4)
    assert more - less == outputs


@needs_native
def test_every_second_block_keeps_its_output() -> None:
    model, x = residual(blocks=5), images()
    with torch.no_grad():
        shape = model[:4](x).shape
    block = 4 * shape.numel()
    plain_outputs = 4 * (4 * 6 * 6 * 6) + 5 * block  # of the stem, and of the first norm in each block
    more = kept(model, x)
    with bn.recompute(model):
        less = kept(model, x)
    assert more - less == plain_outputs + 3 * block
    with bn.recompute(model, chain=True):
        least = kept(model, x)
    assert more - least == plain_outputs + 5 * block


def test_convert_and_revert() -> None:
    torch_model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    x = images()
    before = kept(torch_model, x)
    hooks = len(torch_model._forward_hooks)
    model = bn.convert(torch_model, fuse=True, recompute=True)
    less = kept(model, x)
    assert less < before
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert kept(other, x) == less
        assert not bn.revert(other)._forward_hooks
    bn.convert(model, recompute="chain")
    assert len(model._forward_hooks) == hooks + 1
    bn.revert(model)
    assert kept(model, x) == before
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert not model._forward_hooks_always_called


@needs_native
def test_a_layer_may_be_left_out() -> None:
    model, x = plain("silu"), images()
    more = kept(model, x)
    model[1].set_options(recompute=False)
    with bn.recompute(model):
        less = kept(model, x)
    assert more - less == 4 * 4 * 8 * 4 * 4  # of the other norm
    assert same(*both(model, x))


class Followed(nn.Module):
    """A layer, and an operation that saves its input."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x, residual, mask=None):
        return self.layer(x, residual, mask=mask).sin()


@settings(max_examples=80, deadline=None)
@given(SETTINGS.filter(lambda s: not s.poisoned))
def test_every_combination_of_options(s: Setting) -> None:
    d = data(s)
    one, other = (Followed(layer_for(s, d)) for _ in range(2))
    with bn.backend(s.backend) if s.backend and s.backend != "aten" else nullcontext():
        with bn.recompute(one):
            y, grads = take_step(s, one.layer, one, d)
        expected, right = take_step(s, other.layer, other, d)
    assert torch.equal(y, expected)
    assert all(torch.equal(grads[name], right[name]) for name in right)


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match="no batch norm of ours"), bn.recompute(nn.Linear(2, 2)):
        pass
    with pytest.raises(ValueError, match="recompute must be False, True or 'chain'; got 'all'"):
        bn.convert(nn.BatchNorm1d(3), recompute="all")
    with pytest.raises(ValueError, match="recompute must be one of True, False"):
        bn.BatchNorm1d(3, recompute="chain")
