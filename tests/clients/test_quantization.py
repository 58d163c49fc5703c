"""Quantisation of models with our layers: by torch.ao over torch.fx, and by torchao over torch.export.

tests/integrations/test_torch_tools.py tests `fuse_modules` with our layers.
"""

import copy
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization as ao
from torch.export import export

import batchnorm as bn
from tests.support.backends import NATIVE

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # of observers, for every default that will change
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
SHAPE = (4, 4, 8, 8)


def network() -> nn.Sequential:
    """Ours with what they took, by conversion and by hand; eps and momentum are not torch's defaults."""
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, eps=0.1, momentum=0.3), nn.ReLU())
    by_hand = nn.Sequential(nn.Conv2d(6, 6, 3), bn.BatchNorm2d(6, eps=0.1, momentum=0.3, activation="relu"))
    model = nn.Sequential(*bn.convert(theirs, fuse=True), *by_hand)
    return trained(model)


def trained(model: Any, steps: int = 8) -> Any:
    """The model after batches that are the same for every model; observers of ranges follow slowly."""
    torch.manual_seed(1)
    for _ in range(steps):
        model(torch.randn(SHAPE))
    return model


def close(got: Tensor, wanted: Tensor) -> None:
    """Eight bits round to 1/256 of the range; observers that have seen a few batches, and two layers, make it more."""
    error = (got - wanted).abs().mean() / wanted.abs().max()
    assert error < 0.02, error


def operators(graph: torch.fx.GraphModule) -> list[str]:
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


def test_training_over_fx_finds_torchs_patterns() -> None:
    from torch.ao.nn.intrinsic import qat
    from torch.ao.quantization import quantize_fx

    model = bn.revert(network(), expand=True).train()
    mapping = ao.get_default_qat_qconfig_mapping("x86")
    prepared = trained(quantize_fx.prepare_qat_fx(copy.deepcopy(model), mapping, (torch.randn(SHAPE),)))
    fused = [m for m in prepared.modules() if isinstance(m, qat.ConvBnReLU2d)]
    assert [(m.bn.eps, m.bn.momentum) for m in fused] == [(0.1, 0.3)] * 2
    trained(model)
    x = torch.randn(SHAPE)
    converted = quantize_fx.convert_fx(copy.deepcopy(prepared).eval())
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in converted.modules())
    close(converted(x), model.eval()(x))


@pytest.mark.parametrize("strict", [False, True])
def test_exported_training_is_torchs_operator_on_request(strict: bool) -> None:
    model, x = network().train(), torch.randn(SHAPE)
    ours = any(name.startswith("batchnorm.") for name in operators(export(model, (x,)).module()))
    assert ours is NATIVE  # without a compiler, plain operations are exported
    with bn.backend("aten"):
        program = export(copy.deepcopy(model), (x,), strict=strict).module()
    names = operators(program)
    assert names.count("aten.batch_norm.default") == 2
    assert not any(name.startswith("batchnorm.") for name in names)
    torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-4)
    buffers = dict(program.named_buffers())
    for name, wanted in model.named_buffers():
        torch.testing.assert_close(buffers[name], wanted, rtol=1e-4, atol=1e-5, msg=name)


LOADS = """
import sys, torch
sys.modules["batchnorm"] = None
program, x, wanted = torch.export.load(sys.argv[1]).module(), *torch.load(sys.argv[2])
torch.testing.assert_close(program(x), wanted, rtol=1e-4, atol=1e-4)
"""


@pytest.mark.parametrize("training", [True, False])
def test_a_saved_program_loads_without_this_package(training: bool, tmp_path: Path) -> None:
    model, x = network().train(training), torch.randn(SHAPE)
    with bn.backend("aten"):
        torch.export.save(export(copy.deepcopy(model), (x,)), tmp_path / "program.pt2")
    torch.save((x, model(x).detach()), tmp_path / "data.pt")
    command = [sys.executable, "-c", LOADS, str(tmp_path / "program.pt2"), str(tmp_path / "data.pt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


def test_what_torchs_operator_cannot_do_is_an_error_on_export() -> None:
    layer = nn.Sequential(bn.BatchNorm2d(4, virtual_batch_size=2))
    with bn.backend("aten"), pytest.raises(RuntimeError, match="'aten' was asked for and cannot serve"):
        export(layer, (torch.randn(SHAPE),))


def torchao() -> Any:
    """What the tests need of torchao, imported without its messages about kernels for other devices."""
    pytest.importorskip("torchao", reason="torchao is not installed", exc_type=ImportError)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.quantization.pt2e import quantize_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        from batchnorm.integrations import torchao as ours
    return quantize_pt2e, x86, ours


@pytest.mark.parametrize("training", [True, False], ids=["QAT", "PTQ"])
def test_pt2e(training: bool) -> None:
    """The batch norms are merged into the convolutions: none is left, none normalises by the batch."""
    quantize, x86, ours = torchao()
    model = network()[:3] if training else network()  # torchao takes seconds for each layer
    x = torch.randn(SHAPE)
    with bn.backend("aten"):
        graph = export(copy.deepcopy(model.train(training)), (x,)).module()
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_qat=training))
    prepared = ours.prepare_qat_pt2e(graph, quantizer) if training else quantize.prepare_pt2e(graph, quantizer)
    trained(prepared), trained(model)
    if training:
        ours.move_exported_model_to_eval(prepared)
        norms = [n for n in prepared.graph.nodes if n.target is torch.ops.aten.batch_norm.default]
        assert [n.args[5:8] for n in norms] == [(False, 0.3, 0.1)], "mode, momentum and eps"
    converted = ours.convert_pt2e(prepared) if training else quantize.convert_pt2e(prepared)
    assert not any("norm" in name for name in operators(converted))
    close(converted(x), model.eval()(x))
