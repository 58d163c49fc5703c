"""What is measured: the shapes are those of the networks, the networks those of the papers."""

import pytest
import torch
from torch import nn

import batchnorm as bn
from batchnorm.benchmark import cases as room
from batchnorm.benchmark.agreement import DisagreementError, check, gradient_for, judge, with_affine
from batchnorm.benchmark.cases import BLOCKS, DTYPES, LAYOUTS, Case, cases
from batchnorm.benchmark.steps import both_ways, check_networks, images, rows, training, variants
from batchnorm.benchmark.whole_networks import EVERY, NETWORKS, PARAMETERS


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", EVERY)
def test_networks_have_the_parameters_of_the_papers(name: str, fused: bool) -> None:
    with torch.device("meta"):
        network = EVERY[name](fused=fused)
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name]


def test_shapes_are_those_of_resnet_50() -> None:
    with torch.device("meta"):
        network, x = NETWORKS["ResNet-50"](), torch.empty(32, 3, 224, 224)
    seen = set()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda _, inputs: seen.add(tuple(inputs[0].shape)))
    network(x)
    assert seen == {shape for shape in room.LARGE if len(shape) == 4}
    assert len(room.LARGE) == len(seen) + 3


def test_every_case_asked_for_once() -> None:
    pairs = [(dtype, block) for dtype in ("float32", "bfloat16") for block in BLOCKS]
    found = cases(pairs, LAYOUTS)
    assert len(found) == len(set(found)) == len(pairs) * (15 + 3 + 6 + 13 + 1 + 2)
    for case in found:
        assert case.shape in {"large": room.LARGE, "medium": room.MEDIUM, "small": room.SMALL}[case.group]
    assert {case.shape for case in found} >= set(room.ROWS)
    small = Case((4, 8, 6, 6), torch.bfloat16, "channels_last", "add-relu")
    assert [t.is_contiguous(memory_format=torch.channels_last) for t in (*small.inputs(), small.gradient())] == [
        True
    ] * 3
    assert {t.dtype for t in small.inputs()} == {torch.bfloat16}
    assert {p.dtype for layer in (small.ours(), small.torchs()) for p in layer.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", BLOCKS)
def test_right_results_pass(block: str, dtype: str) -> None:
    for shape in ((8, 16, 9, 9), (64, 24), (2, 6, 5, 4, 4)):
        case = Case(shape, DTYPES[dtype], "contiguous", block)
        check(case, with_affine(case.ours(), case), with_affine(case.torchs(), case))


def test_a_step_starts_without_gradients_and_ends_without() -> None:
    case = Case((8, 16, 9, 9), torch.float32, "contiguous", "add-relu")
    layer, seen = case.ours(), []
    layer.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    step = both_ways(layer, case)
    step()
    step()
    assert torch.equal(*seen)
    assert layer.weight.grad is None


class Scaled(torch.autograd.Function):
    """Passes values on, and gradients a little wrong."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * 1.0001


class Wrong(bn.BatchNorm):
    def forward(self, x, *rest):
        return super().forward(Scaled.apply(x), *rest)


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        (lambda channels: bn.BatchNorm(channels, eps=1e-3), "output"),
        (lambda channels: bn.BatchNorm(channels, activation="relu"), "output"),
        (lambda channels: bn.BatchNorm(channels, momentum=0.11), "running_mean"),
        (Wrong, "gradient of the input"),
    ],
)
def test_wrong_results_are_refused(wrong, where) -> None:
    case = Case((8, 16, 9, 9), torch.float32, "contiguous", "plain")
    with pytest.raises(DisagreementError, match=rf"plain \(8, 16, 9, 9\) float32 contiguous: {where} is off by"):
        check(case, with_affine(wrong(16), case), with_affine(case.torchs(), case))


def test_nan_and_too_large_an_error_are_refused_and_twice_torchs_is_not() -> None:
    exact = {"y": torch.tensor([1.0, 2.0], dtype=torch.float64)}
    theirs = {"y": torch.tensor([1.0, 2.25])}
    judge("here", {"y": torch.tensor([1.0, 2.5])}, theirs, exact)
    for value in (2.501, float("nan")):
        with pytest.raises(DisagreementError, match=r"here: y is off by .* torch's is off by 2\.50e-01"):
            judge("here", {"y": torch.tensor([1.0, value])}, theirs, exact)


def test_no_gradient_arrives_at_the_kink() -> None:
    relu, plain = (Case((32, 16, 9, 9), torch.bfloat16, "contiguous", block) for block in ("relu", "plain"))
    assert (gradient_for(plain) == plain.gradient()).all()
    dropped = (gradient_for(relu) != relu.gradient()).float().mean()
    assert 0 < dropped < 0.2, dropped


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_networks_agree_and_a_wrong_one_is_refused(dtype: str) -> None:
    models, x = variants("MobileNetV2", "channels_last"), images(4, 64, "channels_last")[0]
    before = {name: b.clone() for name, b in models["fused"].named_buffers()}
    check_networks("MobileNetV2 channels_last", models, x, dtype)
    assert all(module.training for model in models.values() for module in model.modules())
    assert any(not torch.equal(b, before[name]) for name, b in models["fused"].named_buffers()), "it was in training"
    models["fused"][-1].weight.data *= 2
    with pytest.raises(DisagreementError, match="MobileNetV2 channels_last, fused: output"):
        check_networks("MobileNetV2 channels_last", models, x, dtype)


def test_the_mlp_agrees_and_learns_the_same() -> None:
    models, (x, labels) = variants("MLP"), rows(64)
    check_networks("MLP contiguous", models, x, "float32")
    losses = {}
    for kind, model in models.items():
        step = training(model, x, labels, "float32")
        for _ in range(20):
            step()
        losses[kind] = nn.functional.cross_entropy(model(x), labels).item()
    assert losses["torch"] < 2.2, "it learns"
    # Adam divides by the gradient's size, so weights whose gradient is rounding error go their own ways.
    assert losses == pytest.approx(dict.fromkeys(losses, losses["torch"]), rel=1e-3)
