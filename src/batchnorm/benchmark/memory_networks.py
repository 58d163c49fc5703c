"""Networks whose activations take much memory, as sequences of blocks: with torch's layers, or with ours fused by hand.

Sources: Simonyan & Zisserman 2015, table 1, D (here with batch norm, and one linear layer after global pooling);
Redmon & Farhadi 2018, "YOLOv3", table 1 (here with the slope 0.01); Huang et al. 2017, "Densely connected convolutional
networks", table 1; Tan & Le 2019, "EfficientNet", table 1.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from batchnorm.benchmark.whole_networks import Builder, mobilenet_v2, resnet50
from batchnorm.tools.convert import convert


class Adds(nn.Module):
    """The sum x + body(x)."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.body(x)
        return y


class Excites(nn.Module):
    """Squeeze and excitation: x times a factor for each channel, computed from the channels' means."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)
        return x * self.excite(nn.functional.silu(self.squeeze(means))).sigmoid()


class Dense(nn.Module):
    """A dense block: the input of each layer is the features of all layers before it.

    With `checkpoints`, as in the memory-efficient DenseNet, concatenation and first convolution are computed again.
    """

    checkpoints = False

    def __init__(self, make: Builder, inputs: int, layers: int, growth: int = 32) -> None:
        super().__init__()
        self.first, self.second = nn.ModuleList(), nn.ModuleList()
        for i in range(layers):
            channels = inputs + i * growth
            narrow = nn.Conv2d(channels, 4 * growth, 1, bias=False)
            self.first.append(nn.Sequential(*make.norm(channels, "relu"), narrow))
            grow = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)
            self.second.append(nn.Sequential(*make.norm(4 * growth, "relu"), grow))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for first, second in zip(self.first, self.second, strict=True):
            joined = partial(self._joined, first)
            narrow = checkpoint(joined, *features, use_reentrant=False) if self.checkpoints else joined(*features)
            features.append(second(narrow))
        return torch.cat(features, 1)

    @staticmethod
    def _joined(first: nn.Module, *features: Tensor) -> Tensor:
        narrow: Tensor = first(torch.cat(features, 1))
        return narrow


def vgg16(fused: bool = False) -> nn.Sequential:
    make, inputs, stages = Builder(fused), 3, list[nn.Module]()
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        layers = [layer for i in range(depth) for layer in make.conv(width if i else inputs, width, 3, "relu")]
        stages.append(nn.Sequential(*layers, nn.MaxPool2d(2)))
        inputs = width
    return nn.Sequential(*stages, *_head(inputs))


def darknet53(fused: bool = False) -> nn.Sequential:
    make, inputs = Builder(fused), 32
    blocks: list[nn.Module] = [nn.Sequential(*make.conv(3, 32, 3, "leaky_relu"))]
    for depth in (1, 2, 8, 8, 4):
        width = 2 * inputs
        blocks.append(nn.Sequential(*make.conv(inputs, width, 3, "leaky_relu", 2)))
        for _ in range(depth):
            narrow = make.conv(width, inputs, 1, "leaky_relu")
            blocks.append(Adds(*narrow, *make.conv(inputs, width, 3, "leaky_relu")))
        inputs = width
    return nn.Sequential(*blocks, *_head(inputs))


def densenet121(fused: bool = False) -> nn.Sequential:
    make, channels = Builder(fused), 64
    blocks: list[nn.Module] = [nn.Sequential(*make.conv(3, 64, 7, "relu", 2), nn.MaxPool2d(3, 2, 1))]
    for i, depth in enumerate((6, 12, 24, 16)):
        if i:
            narrow = nn.Conv2d(channels, channels // 2, 1, bias=False)
            blocks.append(nn.Sequential(*make.norm(channels, "relu"), narrow, nn.AvgPool2d(2)))
            channels //= 2
        blocks.append(Dense(make, channels, depth))
        channels += depth * 32
    return nn.Sequential(*blocks, nn.Sequential(*make.norm(channels, "relu")), *_head(channels))


def efficientnet_b0(fused: bool = False) -> nn.Sequential:
    rows = [
        (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    ]  # fmt: skip
    make, inputs = Builder(fused), 32
    blocks: list[nn.Module] = [nn.Sequential(*make.conv(3, 32, 3, "silu", 2))]
    for expansion, outputs, repeats, first, kernel in rows:
        for i in range(repeats):
            hidden, stride = inputs * expansion, first if i == 0 else 1
            body = make.conv(inputs, hidden, 1, "silu") if expansion != 1 else []
            body += make.conv(hidden, hidden, kernel, "silu", stride, groups=hidden)
            body += [Excites(hidden, inputs // 4), nn.Conv2d(hidden, outputs, 1, bias=False)]
            if stride == 1 and inputs == outputs:
                blocks.append(make.residual(body, outputs, None, nn.Identity()))
            else:
                blocks.append(nn.Sequential(*body, *make.norm(outputs, None)))
            inputs = outputs
    return nn.Sequential(*blocks, nn.Sequential(*make.conv(320, 1280, 1, "silu")), *_head(1280))


def _head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)]


class Checkpointed(nn.Module):
    """A block under torch's activation checkpoint."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(self.block, x, use_reentrant=False)
        return y


def checkpointed(network: nn.Sequential) -> nn.Sequential:
    """Puts a checkpoint around each block of the network, in place, and returns the network."""
    for i, block in enumerate(network):
        if isinstance(block, Dense):
            block.checkpoints = True
        elif any(block.children()):
            network[i] = Checkpointed(block)
    return network


MEMORY_NETWORKS: dict[str, Callable[[bool], nn.Sequential]] = {
    "MobileNetV2": mobilenet_v2,
    "EfficientNet-B0": efficientnet_b0,
    "VGG-16": vgg16,
    "Darknet-53": darknet53,
    "DenseNet-121": densenet121,
    "ResNet-50": resnet50,
    "ResNet-50 SiLU": partial(resnet50, activation="silu"),
}

VARIANTS = ("torch", "fused", "recompute", "chain", "checkpoint")


def variant(name: str, kind: str) -> nn.Sequential:
    """A network of one of `VARIANTS`: with torch's layers, or ours fused, plain or with one way to save memory.

    The weights are the same in all variants.

    Examples:
        >>> len(variant("VGG-16", "recompute"))
        8
    """
    torch.manual_seed(0)
    model = MEMORY_NETWORKS[name](kind != "torch")
    if kind == "checkpoint":
        return checkpointed(model)
    return convert(model, recompute="chain" if kind == "chain" else True) if kind in ("recompute", "chain") else model
