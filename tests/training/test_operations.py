"""Results of cheap operations on outputs of batch norms are computed again under `recompute`."""

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

import batchnorm as bn
from tests.support.backends import NATIVE, needs_native
from tests.training.recompute_cases import (
    Changed,
    Dense,
    both,
    images,
    kept,
    same,
    storage_of,
)


@needs_native
def test_concatenations_are_rebuilt() -> None:
    """Five layers see 8, 10, ..., 16 channels: each concatenation is kept twice without, and its parts once with."""
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), Dense(8, 2, 5), nn.Conv2d(18, 4, 3)), images()
    assert same(*both(model, x))
    more = kept(model, x)
    with bn.recompute(model):
        less = kept(model, x)
    position = 4 * 4 * 6 * 6  # bytes of a channel
    assert more - less == 2 * (8 + 10 + 12 + 14 + 16) * position  # and the last one costs what its parts do


@needs_native
def test_concatenations_of_outputs_cost_nothing() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.ModuleList(nn.Conv2d(3, 4, 3) for _ in range(3))
            self.norm = nn.ModuleList(bn.BatchNorm2d(4, activation="relu") for _ in range(3))
            self.last = nn.Conv2d(12, 2, 3)

        def forward(self, x):
            return self.last(torch.cat([n(c(x)) for c, n in zip(self.conv, self.norm, strict=True)], dim=1))

    model, x = Branches(), images()
    assert same(*both(model, x))
    more = kept(model, x)
    with bn.recompute(model):
        less = kept(model, x)
    assert more - less == 4 * 4 * 12 * 6 * 6


@needs_native
def test_nested_concatenations() -> None:
    """Each layer appends to one concatenation: parts are kept once, however deep they are nested."""

    class Appends(nn.Module):
        def __init__(self, inputs: int) -> None:
            super().__init__()
            self.norm, self.conv = bn.BatchNorm2d(inputs, activation="silu"), nn.Conv2d(inputs, 2, 3, padding=1)

        def forward(self, x):
            return torch.cat([x, self.conv(self.norm(x))], 1)

    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), *(Appends(4 + 2 * i) for i in range(4)), nn.Conv2d(12, 2, 3)), images()
    assert same(*both(model, x))
    more = kept(model, x)
    with bn.recompute(model):
        less = kept(model, x)
    position = 4 * 4 * 6 * 6  # bytes of a channel
    assert more - less == (4 + 6 + 8 + 10) * 2 * position  # and the last one costs what its parts do


def test_a_part_that_is_written_again_before_the_backward_pass() -> None:
    class WithState(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.last = bn.BatchNorm2d(3), nn.Conv2d(5, 2, 3)
            self.register_buffer("state", torch.ones(4, 2, 8, 8))

        def forward(self, x):
            y = self.last(torch.cat([self.norm(x), self.state], 1))
            self.state += 1
            return y

    assert same(*both(WithState(), images()))


def test_parts_of_a_concatenation_that_nobody_saves_are_let_go() -> None:
    class Means(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts, self.norm = nn.ModuleList(nn.Conv2d(3, 2, 3) for _ in range(2)), bn.BatchNorm1d(4)

        def forward(self, x):
            parts = [part(x) for part in self.parts]
            storages.extend(map(storage_of, parts))
            means = torch.cat(parts, 1).mean((2, 3))
            del parts
            assert all(storage.expired() for storage in storages)
            return self.norm(means)

    storages: list[StorageWeakRef] = []
    model = Means()
    with bn.recompute(model):
        model(images())
    assert len(storages) == 2


@needs_native
def test_products_with_something_small_are_multiplied_again() -> None:
    """Squeeze and excitation: the norm's output, its product with a factor for each channel, and the next input."""

    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), bn.BatchNorm2d(8, activation="silu")
            self.excite, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 3)

        def forward(self, x):
            y = self.norm(self.conv(x))
            return self.last(y * self.excite(y.mean((2, 3), keepdim=True)).sigmoid())

    model, x = Squeezed(), images()
    assert same(*both(model, x))
    more = kept(model, x)
    with bn.recompute(model):
        less = kept(model, x)
    assert more - less == 2 * 4 * 4 * 8 * 6 * 6


@needs_native
def test_maxima_are_taken_again() -> None:
    layers = nn.Conv2d(3, 4, 3), bn.BatchNorm2d(4, activation="relu"), nn.MaxPool2d(2), nn.Conv2d(4, 2, 3)
    model, x = nn.Sequential(*layers), images()
    assert same(*both(model, x))
    more = kept(model, x)
    with bn.recompute(model):
        less = kept(model, x)
    assert more - less == 4 * 4 * 4 * (6 * 6 + 3 * 3)


@needs_native
@pytest.mark.parametrize("chain", [False, True])
def test_blocks_that_add_after_the_activation(chain) -> None:
    """As in Darknet: every second sum is added again, or with `chain` each."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), bn.BatchNorm2d(4, activation="leaky_relu")

        def forward(self, x):
            return x + self.norm(self.conv(x))

    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), *(Block() for _ in range(4)), nn.Conv2d(4, 2, 3)), images()
    assert same(*both(model, x, chain))
    more = kept(model, x)
    with bn.recompute(model, chain=chain):
        less = kept(model, x)
    assert more - less == (4 if chain else 2) * 4 * 4 * 4 * 6 * 6  # outputs of the norms were not kept before either


class Unfused(nn.Module):
    """A residual block as torchvision writes it, in place and not."""

    def __init__(self, activation, in_place: bool) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), bn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), bn.BatchNorm2d(4)
        self.activation, self.in_place = activation, in_place

    def forward(self, x):
        y = self.norm2(self.conv2(self.activation(self.norm1(self.conv1(x)))))
        if self.in_place:
            y += x
        else:
            y = y + x
        return self.activation(y)


ACTIVATION_MODULES = [
    nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(inplace=True), nn.LeakyReLU(0.2), nn.SiLU(), nn.SiLU(inplace=True),
    nn.GELU("tanh"), nn.Hardswish(), nn.ELU(), nn.Mish(), torch.relu, torch.Tensor.relu_,
]  # fmt: skip


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("activation", ACTIVATION_MODULES, ids=lambda a: str(a).split(" at 0x")[0])
@pytest.mark.parametrize("chain", [False, True])
def test_the_same_bits_unfused(activation, in_place, chain) -> None:
    blocks = [Unfused(activation, in_place) for _ in range(3)]
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), *blocks, nn.Conv2d(4, 2, 3)), images()
    assert same(*both(model, x, chain))
    more = kept(model, x)
    with bn.recompute(model, chain=chain):
        less = kept(model, x)
    assert less < more or not NATIVE


@needs_native
@pytest.mark.parametrize("in_place", [False, True])
def test_as_little_is_kept_unfused(in_place) -> None:
    """With ReLU: each first activation, and every second output of a block, as with layers that do both themselves."""
    blocks = [Unfused(nn.ReLU(inplace=in_place), in_place) for _ in range(4)]
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), *blocks, nn.Conv2d(4, 2, 3)), images()
    more = kept(model, x)
    with bn.recompute(model):
        less = kept(model, x)
    assert more - less == (4 + 2) * 4 * 4 * 4 * 6 * 6


def test_a_part_of_an_output_that_is_changed_in_place_is_no_recipe() -> None:
    class Part(Changed):
        def forward(self, x):
            y = self.norm(self.conv1(x))
            y[:, :2].relu_()
            return self.conv2(y.sin())

    assert same(*both(Part(None), images()))
