"""An MLP, ResNet-18, ResNet-50 and MobileNetV2, with torch's layers or with ours fused by hand.

Both have the same parameters under the same names. Sources of the last three: He et al. 2016, "Deep residual learning
for image recognition", table 1 (the stride is in the 3×3 convolution of a bottleneck, as is now usual); Sandler et al.
2018, "MobileNetV2: inverted residuals and linear bottlenecks", table 2.
"""

from collections.abc import Callable

from torch import Tensor, nn

from batchnorm.layers import BatchNorm1d, BatchNorm2d

ACTIVATIONS: dict[str | None, Callable[[], nn.Module]] = {
    None: nn.Identity,
    "relu": lambda: nn.ReLU(inplace=True),
    "relu6": lambda: nn.ReLU6(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(inplace=True),
    "silu": lambda: nn.SiLU(inplace=True),
    "gelu": nn.GELU,
}

WIDTH = 256  # of the MLP's layers, and of its input


class Residual(nn.Module):
    """The block activation(norm(body(x)) + shortcut(x))."""

    def __init__(self, body: nn.Module, norm: nn.Module, activation: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.norm, self.activation, self.shortcut = body, norm, activation, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.body(x)) + self.shortcut(x))


class FusedResidual(Residual):
    """The same block with a norm that adds the residual and applies the activation."""

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.body(x), self.shortcut(x))


class Builder:
    """Makes the parts of a network, with torch's layers or with ours fused by hand."""

    def __init__(self, fused: bool) -> None:
        self.fused = fused

    def conv(
        self, inputs: int, outputs: int, kernel: int, activation: str | None = None, stride: int = 1, groups: int = 1
    ) -> list[nn.Module]:
        """A convolution, its batch norm and the activation."""
        return [_conv(inputs, outputs, kernel, stride, groups), *self.norm(outputs, activation)]

    def norm(self, channels: int, activation: str | None) -> list[nn.Module]:
        if self.fused:
            return [BatchNorm2d(channels, activation=activation), nn.Identity()]
        return [nn.BatchNorm2d(channels), ACTIVATIONS[activation]()]

    def residual(self, body: list[nn.Module], channels: int, activation: str | None, shortcut: nn.Module) -> Residual:
        norm, after = self.norm(channels, activation)
        return (FusedResidual if self.fused else Residual)(nn.Sequential(*body), norm, after, shortcut)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


def _resnet(depths: tuple[int, ...], bottleneck: bool, fused: bool, activation: str) -> nn.Sequential:
    make = Builder(fused)
    inputs, blocks = 64, []
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        outputs = width * 4 if bottleneck else width
        for i in range(depth):
            stride = 2 if stage > 0 and i == 0 else 1
            if bottleneck:
                body = [*make.conv(inputs, width, 1, activation), *make.conv(width, width, 3, activation, stride)]
                body += [_conv(width, outputs, 1)]
            else:
                body = [*make.conv(inputs, width, 3, activation, stride), _conv(width, outputs, 3)]
            shortcut: nn.Module = nn.Identity()
            if stride != 1 or inputs != outputs:
                shortcut = nn.Sequential(*make.conv(inputs, outputs, 1, None, stride))
            blocks.append(make.residual(body, outputs, activation, shortcut))
            inputs = outputs
    stem = [*make.conv(3, 64, 7, activation, 2), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


def resnet18(fused: bool = False, activation: str = "relu") -> nn.Sequential:
    return _resnet((2, 2, 2, 2), False, fused, activation)


def resnet50(fused: bool = False, activation: str = "relu") -> nn.Sequential:
    return _resnet((3, 4, 6, 3), True, fused, activation)


def mobilenet_v2(fused: bool = False, activation: str = "relu6") -> nn.Sequential:
    make = Builder(fused)
    rows = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    inputs, blocks = 32, list[nn.Module]()
    for expansion, outputs, repeats, first in rows:
        for i in range(repeats):
            hidden, stride = inputs * expansion, first if i == 0 else 1
            body = make.conv(inputs, hidden, 1, activation) if expansion != 1 else []
            body += [*make.conv(hidden, hidden, 3, activation, stride, groups=hidden), _conv(hidden, outputs, 1)]
            if stride == 1 and inputs == outputs:
                blocks.append(make.residual(body, outputs, None, nn.Identity()))
            else:
                blocks.append(nn.Sequential(*body, *make.norm(outputs, None)))
            inputs = outputs
    head = [*make.conv(320, 1280, 1, activation), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2)]
    return nn.Sequential(*make.conv(3, 32, 3, activation, 2), *blocks, *head, nn.Linear(1280, 1000))


def mlp(fused: bool = False, activation: str = "relu") -> nn.Sequential:
    """Three layers of Linear, batch norm and activation, with 256 units; then ten classes."""
    layers: list[nn.Module] = []
    for _ in range(3):
        norm = BatchNorm1d(WIDTH, activation=activation) if fused else nn.BatchNorm1d(WIDTH)
        layers += [nn.Linear(WIDTH, WIDTH), norm, nn.Identity() if fused else ACTIVATIONS[activation]()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10))


# Networks for images (N, 3, H, W).
NETWORKS: dict[str, Callable[..., nn.Sequential]] = {
    "ResNet-18": resnet18,
    "ResNet-50": resnet50,
    "MobileNetV2": mobilenet_v2,
}
EVERY: dict[str, Callable[..., nn.Sequential]] = {"MLP": mlp, **NETWORKS}
PARAMETERS = {"MLP": 201_482, "ResNet-18": 11_689_512, "ResNet-50": 25_557_032, "MobileNetV2": 3_504_872}
