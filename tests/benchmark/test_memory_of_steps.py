"""The networks of `bench --recompute`: their sizes, what they keep, and that a wrong gradient ends the run."""

import pytest
import torch
from torch import nn

from batchnorm.benchmark import memory_of_steps, steps
from batchnorm.benchmark.agreement import DisagreementError
from batchnorm.benchmark.memory import kept
from batchnorm.benchmark.memory_networks import MEMORY_NETWORKS, variant
from batchnorm.benchmark.resident import peak_of_a_step
from tests.support.backends import needs_native

# Of torchvision's networks of these names, and of timm's darknet53; VGG-16 has one linear layer in place of three.
PARAMETERS = {
    "MobileNetV2": 3_504_872,
    "EfficientNet-B0": 5_288_548,
    "VGG-16": 15_231_912,
    "Darknet-53": 41_609_928,
    "DenseNet-121": 7_978_856,
    "ResNet-50": 25_557_032,
    "ResNet-50 SiLU": 25_557_032,
}
every_network = pytest.mark.parametrize("name", MEMORY_NETWORKS)


@every_network
def test_the_networks_are_those_of_their_names(name: str) -> None:
    with torch.device("meta"):
        sizes = {sum(p.numel() for p in MEMORY_NETWORKS[name](fused).parameters()) for fused in (False, True)}
    assert sizes == {PARAMETERS[name]}


@needs_native
@pytest.mark.parametrize("name", ["MobileNetV2", "DenseNet-121"])
def test_the_aims_are_reached(name: str) -> None:
    """On small images, where statistics and the input weigh more than they should."""
    x = torch.randn(2, 3, 64, 64)
    found = {kind: kept(variant(name, kind), x) for kind in ("torch", "fused", "recompute")}
    assert found["recompute"] <= memory_of_steps.AIMS[name] * found["torch"] < found["fused"]


def test_variants_have_the_same_weights() -> None:
    states = [variant("MobileNetV2", kind).state_dict() for kind in ("torch", "fused", "chain", "checkpoint")]
    values = [list(state.values()) for state in states]
    assert all(all(map(torch.equal, values[0], others)) for others in values[1:])


def test_a_wrong_gradient_is_an_error() -> None:
    right, wrong = nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    x, labels = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    memory_of_steps._check("same", dict.fromkeys(("fused", "recompute", "chain"), right), x, labels)
    with pytest.raises(DisagreementError, match="other, chain: a gradient is not the same, bit for bit"):
        memory_of_steps._check("other", {"fused": right, "recompute": right, "chain": wrong}, x, labels)


def test_the_peak_of_a_step() -> None:
    peak = peak_of_a_step("MobileNetV2", "torch", 4, 96, 1)
    if peak is None:
        pytest.skip("this system does not tell the resident memory of a process")
    size = kept(variant("MobileNetV2", "torch"), steps.images(4, 96, "contiguous")[0])
    assert size / 2 < peak < 6 * size
