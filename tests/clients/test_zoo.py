"""Networks of timm and torchvision: how much of them converts and fuses, and that the results stay torch's.

A part of the list that is quick to build; `python -m benchmarks.networks` runs all of it and writes docs/networks.md.
"""

from pathlib import Path

import pytest
from torch import nn
from torch.nn import functional as F

from benchmarks import networks
from tests.support import zoo
from tests.support.followers import followers
from tests.support.material import drifting

# At least so many of the operations that ours can take are taken.
FEWEST = {
    "timm:efficientnet_b0": 1.0,
    "timm:ghostnet_050": 1.0,
    "timm:hrnet_w18_small": 0.9,
    "timm:lcnet_035": 1.0,
    "timm:levit_conv_128s": 0.7,
    "timm:mobilenetv3_small_050": 1.0,
    "timm:mobilenetv4_conv_small_050": 1.0,
    "timm:regnetx_002": 1.0,
    "timm:repvgg_a0": 0.5,
    "timm:resnet18": 1.0,
    "timm:selecsls42": 1.0,
    "torchvision:densenet121": 1.0,
    "torchvision:mobilenet_v2": 1.0,
    "torchvision:regnet_y_400mf": 1.0,
    "torchvision:resnet18": 1.0,
    "torchvision:shufflenet_v2_x0_5": 1.0,
}
TRAINED = (
    "timm:lcnet_035",
    "timm:mobilenetv4_conv_small_050",
    "torchvision:resnet18",
    "torchvision:shufflenet_v2_x0_5",
)


def entry(name: str) -> zoo.Entry:
    found = next(e for e in zoo.entries() if str(e) == name)
    zoo.package_or_skip(found.package)
    return found


@pytest.mark.parametrize("name", FEWEST)
def test_all_norms_convert_and_most_fuse(name: str) -> None:
    row = networks.measure(entry(name), train=False)
    assert row.norms > 10
    assert row.converted == row.norms, row.left
    assert row.fused / row.fusible >= FEWEST[name], row.left


@pytest.mark.parametrize("name", TRAINED)
def test_three_steps_are_those_of_torchs_layers(name: str) -> None:
    assert networks.measure(entry(name)).error < 1e-7


def test_the_list_is_long_and_the_page_has_it_all() -> None:
    names = [str(e) for e in zoo.entries()]
    assert len(names) == len(set(names)) >= 60
    page = (Path(__file__).parents[2] / "docs" / "networks.md").read_text(encoding="utf-8")
    missing = [name for name in names if f"| {name} |" not in page]
    assert not missing, "python -m benchmarks.networks --write"


class Followed(nn.Module):
    """A batch norm for each kind of thing that may follow one."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleDict({name: nn.BatchNorm2d(4) for name in KINDS})

    def forward(self, x):
        n = self.norms
        y = F.relu(n["activation"](x), inplace=True) + 1
        y = y + n["addition"](x)
        y = y + n["several"](x) * n["several"](y)
        z = n["tanh"](x).tanh()
        w = n["in place"](x)
        w += y
        w = w * 2
        return F.leaky_relu(n["leaky_relu"](z), 0.3) + w.mean() + n["a constant"](x).add(1)


KINDS = {
    "activation": "activation",
    "addition": "addition",
    "several": "several",
    "tanh": "tanh",
    "in place": "addition",
    "leaky_relu": "leaky_relu",
    "a constant": "add",
}


def test_what_follows_is_seen() -> None:
    found = followers(Followed(), drifting(3, 4, 5, 5))
    kinds = {name.partition(".")[2]: use.kind for name, use in found.items()}
    assert kinds == KINDS
