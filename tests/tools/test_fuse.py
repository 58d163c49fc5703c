"""`convert(fuse=True)`: the same results with fewer operations; uncertain cases stay unchanged."""

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import batchnorm as bn
from batchnorm.benchmark.whole_networks import NETWORKS
from batchnorm.tools.fuse import Fused
from tests.support.material import drifting


def layers(model: nn.Module) -> dict[str, bn.BatchNorm]:
    return {name: m for name, m in model.named_modules() if isinstance(m, bn.BatchNorm)}


def activations(model: nn.Module) -> list[str | None]:
    return [layer.activation for layer in layers(model).values()]


def is_rewritten(module: nn.Module) -> bool:
    return hasattr(type(module), "_unfused")


def agree(model: nn.Module, fused: nn.Module, x: Tensor) -> None:
    """Two training steps and an evaluation give the same outputs, gradients and state, in float64."""
    model, fused, x = copy.deepcopy(model).double(), copy.deepcopy(fused).double(), x.double()
    for mode in (True, True, False):
        results = []
        for m in (model.train(mode), fused.train(mode)):
            leaf = x.clone().requires_grad_()
            torch.manual_seed(0)
            y = m(leaf)
            y.square().sum().backward()
            results.append([y.detach(), leaf.grad, *(p.grad for p in m.parameters()), *m.state_dict().values()])
            m.zero_grad()
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)
    assert list(model.state_dict()) == list(fused.state_dict())


def check(model: nn.Module, expected: list[str | None], x: Tensor | None = None) -> nn.Module:
    """The fused model does the same, its norms have these activations, and `revert` brings everything back."""
    fused = bn.convert(copy.deepcopy(model), fuse=True)
    assert activations(fused) == expected
    agree(model, fused, drifting(6, 4, 5, 5) if x is None else x)
    back = bn.revert(copy.deepcopy(fused))
    assert str(back) == str(model)
    assert [type(m) for m in back.modules()] == [type(m) for m in model.modules()]
    return fused


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_become_what_is_fused_by_hand(name: str) -> None:
    model, by_hand = NETWORKS[name](), NETWORKS[name](fused=True)
    by_hand.load_state_dict(model.state_dict())
    fused = bn.convert(model, fuse=True)
    assert {k: v.activation for k, v in layers(fused).items()} == {k: v.activation for k, v in layers(by_hand).items()}
    assert list(fused.state_dict()) == list(by_hand.state_dict())
    x, seen = torch.randn(2, 3, 64, 64), []
    for m in (fused, by_hand):
        for layer in layers(m).values():
            layer.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs)))
        torch.manual_seed(0)
        seen.append(m(x).sum().item())
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]
    assert 2 in seen, "residuals are added in the same pass"


MODULES: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "hardswish": nn.Hardswish,
}


@pytest.mark.parametrize("name", MODULES)
def test_a_sequence(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), MODULES[name](), nn.Conv2d(4, 4, 1))
    fused = check(model, [name])
    assert isinstance(fused[2], Fused)
    agree(model[:3], fused[:3], drifting(6, 4, 5, 5))  # a slice is right as well


@pytest.mark.parametrize(
    "after",
    [nn.Tanh(), nn.LeakyReLU(0.2), nn.GELU(approximate="tanh"), nn.Identity(), nn.Dropout(0.0), nn.Hardtanh(0, 6)],
    ids=repr,
)
def test_what_ours_does_not_know_stays(after: nn.Module) -> None:
    assert check(nn.Sequential(nn.BatchNorm2d(4), after), [None])[1] is not after


class Block(nn.Module):
    """torchvision's shape of a block: one ReLU for all, in place, a sum in place, and a shortcut worked out late."""

    def __init__(self, shortcut: bool = True) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)) if shortcut else None

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


@pytest.mark.parametrize("shortcut", [True, False])
def test_a_block(shortcut: bool) -> None:
    fused = check(Block(shortcut), ["relu", "relu"] + [None] * shortcut)
    assert isinstance(fused, Block)
    for twin in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert type(twin) is type(fused)
        agree(twin, fused, drifting(6, 4, 5, 5))
    assert type(bn.convert(Block(shortcut), fuse=True)) is type(fused), "one class for blocks that are alike"


def test_compiled_and_exported() -> None:
    fused, x = bn.convert(nn.Sequential(Block(), nn.BatchNorm2d(4), nn.SiLU()), fuse=True), drifting(6, 4, 5, 5)
    compiled = torch.compile(copy.deepcopy(fused), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), fused(x), rtol=1e-4, atol=1e-5)
    exported = torch.export.export(fused.eval(), (x,)).module()
    torch.testing.assert_close(exported(x), fused(x), rtol=1e-4, atol=1e-5)


def test_folds_afterwards() -> None:
    model = bn.convert(Block(), fuse=True)
    model(x := drifting(6, 4, 5, 5))
    assert len(bn.fold(model.eval(), x).report.into) == 3


def test_what_cannot_be_folded_keeps_its_activation() -> None:
    """A graph has no place where the activation could go back to."""
    for model in (nn.Sequential(nn.BatchNorm2d(4), nn.SiLU()), type("Mine", (Traced,), {"forward": Taken.module})()):
        fused, x = bn.convert(model, fuse=True), drifting(6, 4, 5, 5)
        fused(x)
        torch.testing.assert_close(bn.fold(fused.eval())(x), fused(x))


def test_twice_is_once() -> None:
    fused = bn.convert(nn.Sequential(Block(), nn.BatchNorm2d(4), nn.ReLU()), fuse=True)
    once, text = type(fused[0]), str(fused)
    assert (type(bn.convert(fused, fuse=True)[0]), str(fused)) == (once, text)


class Traced(nn.Module):
    """A norm, an activation, and a forward that the test gives."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act, self.linear = nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 4, 1)
        self.scale = nn.Parameter(torch.ones(1, 4, 1, 1))
        self.depth, self.seen = 0, []


def forwards(cls: type) -> Callable[..., Any]:
    """Parametrises by the methods of a class, each a forward of `Traced`."""
    found = {name: f for name, f in vars(cls).items() if callable(f)}
    return pytest.mark.parametrize("forward", found.values(), ids=found.keys())


class Taken:
    def module(self, x: Tensor) -> Tensor:
        return self.act(self.norm(x))

    def function(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(x), inplace=True)

    def activation_used_twice(self, x: Tensor) -> Tensor:
        return self.act(self.linear(self.act(self.norm(x))))

    def then_a_sum(self, x: Tensor) -> Tensor:
        return self.act(x + self.norm(self.linear(x)))

    def a_sum_of_torch(self, x: Tensor) -> Tensor:
        return F.silu(torch.add(self.norm(x), x))

    def a_residual_that_broadcasts(self, x: Tensor) -> Tensor:
        return self.act(x.mean((2, 3), keepdim=True) + self.norm(x))

    def a_parameter_as_residual(self, x: Tensor) -> Tensor:
        return self.act(self.norm(x) + self.scale)

    def a_number_as_residual(self, x: Tensor) -> Tensor:
        return self.act(x.shape[0] + self.norm(x))

    def the_input_of_the_norm_as_residual(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return self.act(self.norm(y) + y)


@forwards(Taken)
def test_traced(forward: Any) -> None:
    cls = type("Mine", (Traced,), {"forward": forward})
    fused = check(cls(), ["silu"])
    assert isinstance(fused, cls)
    assert is_rewritten(fused)


class OnlyTheSum:
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x)) + x

    def and_used_again(self, x: Tensor) -> Tensor:
        y = self.norm(x) + x
        return y + self.act(y)


@forwards(OnlyTheSum)
def test_a_sum_without_an_activation(forward: Any) -> None:
    assert is_rewritten(check(type("Mine", (Traced,), {"forward": forward})(), [None]))


class ModuleInPlace:
    """The activation's module is replaced: forward stays as it was written, whatever else it does."""

    def dropout_by_mode(self, x: Tensor) -> Tensor:
        return F.dropout(self.act(self.norm(x)), 0.5, self.training)

    def something_is_left_behind(self, x: Tensor) -> Tensor:
        self.depth += 1
        return self.act(self.norm(x))

    def a_list_is_filled(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(x))
        self.seen.append(y.shape)
        return y

    def by_another_method(self, x: Tensor) -> Tensor:
        return self.features(x)

    def by_another_method_in_a_lambda(self, x: Tensor) -> Tensor:
        return (lambda t: self.features(t))(x)

    def a_type_decides(self, x: Tensor) -> Tensor:
        return self.act(self.norm(x)) if isinstance(x, Tensor) else self.act(self.norm(x[0]))

    def a_function_of_the_users(self, x: Tensor) -> Tensor:
        return not_torchs(self.act(self.norm(x)))

    def an_option_that_changes_nothing_here(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        y = self.act(self.norm(x))
        return y if scale is None else y * scale


@forwards(ModuleInPlace)
def test_an_activation_of_its_own_is_replaced(forward: Any) -> None:
    cls = type("Mine", (Traced,), {"forward": forward, "features": features})
    model = cls()
    fused = check(model, ["silu"])
    assert type(fused) is cls
    assert isinstance(fused.act, Fused)
    assert (fused.depth, fused.seen) == (0, []), "tracing leaves nothing behind"


class Left:
    def output_used_twice(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return y * self.act(y)

    def norm_used_twice(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.act(self.norm(x))))

    def output_added_to_itself(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.act(y + y)

    def a_multiple_is_added(self, x: Tensor) -> Tensor:
        return torch.add(self.norm(x), x, alpha=2)

    def a_constant_is_added(self, x: Tensor) -> Tensor:
        return self.act(self.norm(x) + 1)

    def another_slope(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(x), 0.3)

    def another_gelu(self, x: Tensor) -> Tensor:
        return F.gelu(self.norm(x), approximate="tanh")

    def something_in_between(self, x: Tensor) -> Tensor:
        return self.act(self.norm(x) * 2)

    def the_values_decide(self, x: Tensor) -> Tensor:
        return self.act(self.norm(x)) if x.sum() > -1e9 else x

    def the_mode_decides(self, x: Tensor) -> Tensor:
        return self.act(self.norm(x)) if self.training else self.norm(x)

    def a_type_decides(self, x: Tensor) -> Tensor:
        return self.act(self.norm(x)) if isinstance(x, Tensor) else self.norm(x[0])

    def an_option_decides(self, x: Tensor, raw: bool = False) -> Tensor:
        return self.norm(x) if raw else self.act(self.norm(x))

    def an_optional_input(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        y = self.norm(x)
        return self.act(y if skip is None else y + skip)


@torch.fx.wrap
def not_torchs(x: Tensor) -> Tensor:
    return x * 2


def features(self: Any, x: Tensor) -> Tensor:
    return self.act(self.norm(x))


@forwards(Left)
def test_what_is_not_certain_stays(forward: Any) -> None:
    cls = type("Mine", (Traced,), {"forward": forward, "features": features})
    model = cls()
    fused = check(model, [None])
    assert type(fused) is cls
    assert (fused.depth, fused.seen) == (0, []), "tracing leaves nothing behind"


def test_a_residual_of_another_dtype() -> None:
    class Mine(Traced):
        def forward(self, x: Tensor) -> Tensor:
            return self.act(x.double() + self.norm(x))

    x = drifting(6, 4, 5, 5)
    model = Mine()
    fused = bn.convert(copy.deepcopy(model), fuse=True)
    assert is_rewritten(fused)
    assert fused(x).dtype == torch.float64
    torch.testing.assert_close(fused(x), model(x), rtol=1e-5, atol=1e-6)


def test_the_inputs_of_a_norm_stay_as_they_were_when_it_ran() -> None:
    """The norm's call moves behind what makes the residual; where that may write to the norm's input, it must not."""

    class Mine(Traced):
        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            z = self.norm(y)
            return self.act(z + F.relu_(y))

    x, model = drifting(6, 4, 5, 5), Mine().eval()
    with torch.no_grad():
        torch.testing.assert_close(bn.convert(copy.deepcopy(model), fuse=True)(x), model(x))


class Product(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * y


def test_names_of_modules_are_not_operations() -> None:
    class Mine(Traced):
        def __init__(self) -> None:
            super().__init__()
            self.add, self.relu = Product(), nn.Tanh()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.add(self.norm(x), x))

    check(Mine(), [None])


HOOKS = ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("who", ["norm", "activation"])
@pytest.mark.parametrize("make", [lambda: nn.Sequential(nn.BatchNorm2d(4), nn.SiLU()), None], ids=["sequence", "block"])
def test_hooks_see_what_they_saw(make: Any, who: str, hook: str) -> None:
    model = type("Mine", (Traced,), {"forward": Taken.module})() if make is None else make()
    children = list(model.children())
    getattr(children[who == "activation"], hook)(lambda *_: None)
    bn.convert(model, fuse=True)
    assert activations(model) == [None]
    assert list(model.children()) == children


def test_hooks_of_the_block_go_on() -> None:
    block, calls = Block(), []
    block.register_forward_hook(lambda *_: calls.append(1))
    bn.convert(block, fuse=True)(drifting(6, 4, 5, 5))
    assert calls == [1]


def test_shared_modules() -> None:
    """A norm in two places has two outputs to think of; an activation in two places is taken from one."""
    norm, act = nn.BatchNorm2d(4), nn.SiLU()
    check(nn.Sequential(norm, nn.SiLU(), norm), [None])
    fused = check(nn.Sequential(nn.BatchNorm2d(4), act, nn.Conv2d(4, 4, 1), act), ["silu"])
    assert isinstance(fused[1], Fused)
    assert isinstance(fused[3], nn.SiLU)


def test_what_is_set_already_stays() -> None:
    model = nn.Sequential(bn.BatchNorm2d(4, activation="relu"), nn.SiLU(), bn.BatchNorm2d(4), nn.SiLU())
    assert activations(bn.convert(model, fuse=True)) == ["relu", "silu"]
    with pytest.raises(ValueError, match="0 \\(activation='relu'\\)"):
        bn.revert(model)
    assert isinstance(model[3], Fused), "nothing was changed"


def test_a_subclass_with_a_forward_of_its_own_stays() -> None:
    class Mine(bn.BatchNorm2d):
        def forward(self, *arguments: Any) -> Tensor:
            return 2 * super().forward(*arguments)

    assert activations(bn.convert(nn.Sequential(Mine(4), nn.SiLU()), fuse=True)) == [None]


def test_nothing_is_fused_unasked() -> None:
    assert activations(bn.convert(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), Block()))) == [None] * 4


def test_an_optimizer_goes_on() -> None:
    model = nn.Sequential(Block(), nn.BatchNorm2d(4), nn.SiLU()).double()
    other, x = copy.deepcopy(model), drifting(6, 4, 5, 5).double()
    optimizers = [torch.optim.SGD(m.parameters(), 0.01, momentum=0.9) for m in (model, other)]
    for step in range(4):
        if step == 2:
            bn.convert(other, fuse=True)
        for m, optimizer in zip((model, other), optimizers, strict=True):
            optimizer.zero_grad()
            m(x).square().mean().backward()
            optimizer.step()
    for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)
    assert other[1].activation == "silu"


def test_no_warning_is_given() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bn.convert(nn.Sequential(Block(), nn.BatchNorm2d(4), nn.SiLU()), fuse=True)
