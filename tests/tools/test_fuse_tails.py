"""A batch norm at the end of a submodule is fused with what follows the submodule; uncertain cases stay unchanged."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import batchnorm as bn
from tests.support.material import drifting
from tests.tools.test_fuse import agree, check


class ConvNorm(nn.Module):
    """A convolution and its batch norm, as many packages have it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.norm(self.conv(x)))


class Checked(ConvNorm):
    """The same with a forward that cannot be written anew: it asks for the type of its input."""

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError("a tensor is needed")
        return super().forward(x)


def sequence() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))


TAILS = {
    "sequence": sequence,
    "module": ConvNorm,
    "nested": lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Sequential(ConvNorm(), nn.Identity())),
}
every_tail = pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS)


class Around(nn.Module):
    """A body and what follows it, in the forward that a test gives."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.act, self.shortcut = body, nn.SiLU(inplace=True), nn.Conv2d(4, 4, 1)


def around(body: nn.Module, forward: Any) -> nn.Module:
    return type("Mine", (Around,), {"forward": forward})(body)


FORWARDS = {
    "addition": (lambda self, x: x + self.body(x), None),
    "addition and activation": (lambda self, x: F.silu(self.shortcut(x) + self.body(x)), "silu"),
    "activation": (lambda self, x: self.act(self.body(x)), "silu"),
}


@every_tail
@pytest.mark.parametrize("follows", FORWARDS)
def test_taken(tail: Any, follows: str) -> None:
    forward, activation = FORWARDS[follows]
    model = around(tail(), forward)
    fused = check(model, [activation])
    norm = next(m for m in fused.modules() if isinstance(m, bn.BatchNorm))
    seen: list[int] = []
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs)))
    fused(drifting(6, 4, 5, 5))
    assert seen == [1 if follows == "activation" else 2]


@every_tail
def test_copies_pickles_and_a_second_conversion(tail: Any) -> None:
    model, x = around(tail(), FORWARDS["addition"][0]), drifting(6, 4, 5, 5)
    fused = bn.convert(copy.deepcopy(model), fuse=True)
    classes = [type(m) for m in fused.modules()]
    for twin in (copy.deepcopy(fused), bn.convert(copy.deepcopy(fused), fuse=True)):
        assert [type(m) for m in twin.modules()] == classes
        agree(model, twin, x)
    body = pickle.loads(pickle.dumps(fused.body))
    torch.testing.assert_close(body(x), fused.body(x))
    assert [type(m) for m in bn.revert(copy.deepcopy(fused)).modules()] == [type(m) for m in model.modules()]


@every_tail
def test_hooks_of_the_module_around_the_norm_go_on(tail: Any) -> None:
    """They are registered afterwards; the module is called as it was."""
    fused, calls = bn.convert(around(tail(), FORWARDS["addition"][0]), fuse=True), []
    fused.body.register_forward_hook(lambda *_: calls.append(1))
    fused(drifting(6, 4, 5, 5))
    assert calls == [1]


@every_tail
@pytest.mark.parametrize("follows", FORWARDS)
def test_a_hook_before_the_conversion_sees_what_it_saw(tail: Any, follows: str) -> None:
    model = around(tail(), FORWARDS[follows][0])
    model.body.register_forward_hook(lambda *_: None)
    bn.convert(model, fuse=True)
    assert not any(m._fused for m in model.modules() if isinstance(m, bn.BatchNorm))


def test_an_activation_but_no_residual_where_forward_cannot_be_written_anew() -> None:
    check(around(Checked(), FORWARDS["activation"][0]), ["silu"])
    check(around(Checked(), lambda self, x: F.silu(self.body(x) + x)), [None])


def test_a_body_called_twice_stays() -> None:
    check(around(ConvNorm(), lambda self, x: self.act(self.body(self.act(self.body(x))))), [None])
    check(around(ConvNorm(), lambda self, x: self.act(self.body(x)) + self.body.norm(x)), [None])
    shared = ConvNorm()
    check(nn.Sequential(shared, nn.SiLU(), nn.Sequential(shared)), [None])


def test_the_shortcut_that_comes_later_from_the_same_input_stays() -> None:
    """Its convolution might write to the input that the body's call would read after it."""
    check(around(ConvNorm(), lambda self, x: self.body(x) + self.shortcut(x)), [None])


class Concatenated(nn.Module):
    """A list or a tensor comes in, as in dense networks."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act, self.conv = nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1)

    def joined(self, xs: list[Tensor]) -> Tensor:
        return self.conv(self.act(self.norm(torch.cat(xs, 1))))

    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        return self.joined([x] if isinstance(x, Tensor) else x)


def test_lists_and_tensors() -> None:
    fused = check(Concatenated(), ["relu"])
    x = drifting(6, 4, 5, 5)
    torch.testing.assert_close(fused([x[:, :1], x[:, 1:]]), fused(x))


class Listed(nn.Module):
    """Batch norms and activations in lists, called from the forward of the module around them."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2))
        self.acts = nn.ModuleList([nn.ReLU(), nn.Tanh()])

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for norm, act in zip(self.norms, self.acts, strict=True):
            x = act(norm(x))
            outputs.append(x)
        return torch.cat(outputs, 1)


def test_modules_in_lists() -> None:
    check(Listed(), ["relu", None])


def test_a_traced_model_with_a_residual_in_a_body_can_be_folded() -> None:
    model, x = around(ConvNorm(), FORWARDS["addition and activation"][0]), drifting(6, 4, 5, 5)
    model(x)
    fused = bn.convert(copy.deepcopy(model), fuse=True).eval()
    folded = bn.fold(fused, x)
    assert len(folded.report.into) == 1
    torch.testing.assert_close(folded(x), model.eval()(x), rtol=1e-4, atol=1e-5)


class UltralyticsConv(nn.Module):
    """A convolution, its batch norm and activation, with a second way for deployment."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))

    def forward_fuse(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


class UltralyticsBottleneck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cv1, self.cv2, self.add = UltralyticsConv(), UltralyticsConv(), True

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


class TransformersConv(nn.Module):
    def __init__(self, activation: str | None) -> None:
        super().__init__()
        self.convolution, self.normalization = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.activation = nn.ReLU() if activation else nn.Identity()

    def forward(self, input: Tensor) -> Tensor:
        hidden_state = self.convolution(input)
        hidden_state = self.normalization(hidden_state)
        return self.activation(hidden_state)


class TransformersLayer(nn.Module):
    """The shortcut has a batch norm of its own and comes last: it adds the other branch."""

    def __init__(self) -> None:
        super().__init__()
        self.shortcut = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.layer = nn.Sequential(TransformersConv("relu"), TransformersConv(None))
        self.activation = nn.ReLU()

    def forward(self, hidden_state: Tensor) -> Tensor:
        residual = hidden_state
        hidden_state = self.layer(hidden_state)
        residual = self.shortcut(residual)
        hidden_state += residual
        return self.activation(hidden_state)


def test_blocks_as_ultralytics_has_them() -> None:
    check(UltralyticsBottleneck(), ["silu", "silu"])


def test_blocks_as_transformers_has_them() -> None:
    check(TransformersLayer(), ["relu", "relu", None])
