"""ResNet-18, ResNet-50 and MobileNetV2, built around any `norm(channels, activation) -> layer(x, residual=None)`.

Sources: He et al. 2016, "Deep residual learning for image recognition", table 1 (stride in the 3×3 convolution of a
bottleneck, as is now usual); Sandler et al. 2018, "MobileNetV2", table 2.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

import batchnorm as bn

Norm = Callable[[int, str | None], nn.Module]


ACTIVATIONS = {None: nn.Identity, "relu": partial(nn.ReLU, inplace=True), "relu6": partial(nn.ReLU6, inplace=True)}


class TorchNorm(nn.Module):
    """torch's batch norm, then the residual, then the activation: three layers, as networks are written with torch."""

    def __init__(self, channels: int, activation: str | None = None) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = self.norm(x)
        return self.activation(y if residual is None else y + residual)


def our_norm(channels: int, activation: str | None = None) -> nn.Module:
    """Ours, with residual and activation in the same pass."""
    return bn.BatchNorm2d(channels, activation=activation)


class Residual(nn.Module):
    """act(norm(convolutions(x)) + shortcut(x)), the block of a ResNet."""

    def __init__(self, norm: Norm, convolutions: nn.Sequential, out: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.convolutions, self.norm, self.shortcut = convolutions, norm(out, "relu"), shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.convolutions(x), self.shortcut(x))


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


def resnet(norm: Norm, depths: tuple[int, ...], bottleneck: bool) -> nn.Sequential:
    inputs, stages = 64, []
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        outputs = width * 4 if bottleneck else width
        for i in range(depth):
            stride = 2 if stage > 0 and i == 0 else 1
            if bottleneck:
                layers = [conv(inputs, width, 1), norm(width, "relu"), conv(width, width, 3, stride)]
                layers += [norm(width, "relu"), conv(width, outputs, 1)]
            else:
                layers = [conv(inputs, width, 3, stride), norm(width, "relu"), conv(width, outputs, 3)]
            shortcut: nn.Module = nn.Identity()
            if stride != 1 or inputs != outputs:
                shortcut = nn.Sequential(conv(inputs, outputs, 1, stride), norm(outputs, None))
            stages.append(Residual(norm, nn.Sequential(*layers), outputs, shortcut))
            inputs = outputs
    stem = [conv(3, 64, 7, 2), norm(64, "relu"), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


def resnet18(norm: Norm) -> nn.Sequential:
    return resnet(norm, (2, 2, 2, 2), bottleneck=False)


def resnet50(norm: Norm) -> nn.Sequential:
    return resnet(norm, (3, 4, 6, 3), bottleneck=True)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; plus the input where the shapes agree. The block of MobileNetV2."""

    def __init__(self, norm: Norm, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [conv(inputs, hidden, 1), norm(hidden, "relu6")] if expansion != 1 else []
        filter = [conv(hidden, hidden, 3, stride, groups=hidden), norm(hidden, "relu6")]
        self.convolutions = nn.Sequential(*expand, *filter, conv(hidden, outputs, 1))
        self.norm = norm(outputs, None)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.convolutions(x), x if self.shortcut else None)


def mobilenet_v2(norm: Norm) -> nn.Sequential:
    rows = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    inputs, blocks = 32, []
    for expansion, outputs, repeats, stride in rows:
        for i in range(repeats):
            blocks.append(InvertedResidual(norm, inputs, outputs, stride if i == 0 else 1, expansion))
            inputs = outputs
    stem = [conv(3, 32, 3, 2), norm(32, "relu6")]
    head = [conv(320, 1280, 1), norm(1280, "relu6"), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2)]
    return nn.Sequential(*stem, *blocks, *head, nn.Linear(1280, 1000))


NETWORKS: dict[str, Callable[[Norm], nn.Sequential]] = {
    "ResNet-18": resnet18,
    "ResNet-50": resnet50,
    "MobileNetV2": mobilenet_v2,
}


def training_step(network: nn.Module, images: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
    loss = nn.functional.cross_entropy(network(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss
