"""Folding if torch.fx cannot trace: torch.export records the dataflow on the example."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import batchnorm as bn
from tests.support import zoo
from tests.support.material import drifting


class Asks(nn.Module):
    """A forward that asks for the values of a shape, as padding by hand does."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) if x.shape[2] > 3 else x


def trained(model: nn.Module, *shape: int) -> nn.Module:
    for number in range(3):
        model(drifting(*(shape or (4, 4, 6, 6)), offset=float(number)))
    return model.eval()


BODIES: dict[str, Any] = {
    "convolution": (lambda: [nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), nn.ReLU()], 1),
    "same padding": (lambda: [nn.Conv2d(4, 6, 3, padding="same", bias=False), nn.BatchNorm2d(6)], 1),
    "transposed": (lambda: [nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)], 1),
    "before a convolution": (lambda: [nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3)], 1),
    "before a padded one": (lambda: [nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1)], 0),
    "linear": (lambda: [nn.Flatten(), nn.Linear(144, 6), nn.BatchNorm1d(6), nn.SiLU()], 1),
    "ours": (lambda: [nn.Conv2d(4, 6, 3), bn.BatchNorm2d(6, activation="gelu")], 1),
    "several": (
        lambda: [nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 3, 1), nn.BatchNorm2d(3, affine=False)],
        2,
    ),
}


@pytest.mark.parametrize("body", BODIES)
def test_folded_on_the_example(body: str) -> None:
    make, count = BODIES[body]
    model = trained(Asks(*make()))
    before = copy.deepcopy(model.state_dict())
    folded = bn.fold(model, drifting(3, 4, 6, 6))
    assert len(folded.report.into) == count, folded.report
    assert len(folded.report.into) + len(folded.report.left) == sum("running_mean" in key for key in before)
    assert all(name.startswith("body.") for name in [*folded.report.into, *folded.report.left])
    left = [n for n in folded.graph.nodes if "batch_norm" in str(n.target)]
    assert len(left) == len(folded.report.left)
    for samples in (3, 1, 7):
        x = drifting(samples, 4, 6, 6)
        torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))


def test_without_an_example_the_cure_is_named() -> None:
    with pytest.raises(ValueError, match=r"cannot be followed.*With an example, torch\.export is tried as well"):
        bn.fold(trained(Asks(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))))


def test_what_depends_on_values_is_refused_with_both_reasons() -> None:
    class ByValue(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x) if x.sum() > 0 else x

    with pytest.raises(ValueError, match=r"symbolically traced.*torch\.export on the example: "):
        bn.fold(trained(ByValue()), drifting(3, 4, 6, 6))


def test_untrained_layers_are_refused_here_too() -> None:
    with pytest.raises(ValueError, match=r"never trained: body\.1"):
        bn.fold(Asks(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).eval(), drifting(3, 4, 6, 6))


def test_an_averaged_model() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    averaged = AveragedModel(model, use_buffers=True)
    for number in range(3):
        model(drifting(4, 4, 6, 6, offset=float(number)))
        averaged.update_parameters(model)
    x = drifting(3, 4, 6, 6)
    folded = bn.fold(averaged.eval(), x)
    assert folded.report.into == {"1": "0"}
    torch.testing.assert_close(folded(x), averaged(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="in training mode"):
        bn.fold(averaged.train(), x)


# torch copies the inputs' structure of a recorded graph by a part of it that is deprecated
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
@pytest.mark.parametrize("wrap", [Asks, nn.Sequential])
def test_the_report_survives_copies(wrap: Any) -> None:
    folded = bn.fold(trained(wrap(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))), drifting(3, 4, 6, 6))
    assert copy.deepcopy(folded).report == folded.report
    assert copy.deepcopy(copy.deepcopy(folded)).report == folded.report
    if wrap is nn.Sequential:
        assert pickle.loads(pickle.dumps(folded)).report == folded.report


def test_a_network_that_torch_fx_cannot_trace() -> None:
    zoo.package_or_skip("timm")
    entry = next(e for e in zoo.entries() if e.name == "mobilevit_xxs")
    model, x = zoo.build(entry), zoo.pictures(entry)
    with pytest.raises(torch.fx.proxy.TraceError):
        torch.fx.symbolic_trace(model)
    model(x)
    folded = bn.fold(model.eval(), x)
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert len(folded.report.into) + len(folded.report.left) == norms
    assert len(folded.report.into) > 0.7 * norms, folded.report
