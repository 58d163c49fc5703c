"""Small networks of the kinds that people train with batch norm, and a step of each on one big batch."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import batchnorm as bn


def conv(i: int, o: int, size: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(i, o, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(o)]


class Residual(nn.Module):
    """ResNet: in-place activations and an addition in place, as torchvision writes them."""

    def __init__(self, i: int, o: int, stride: int = 1) -> None:
        super().__init__()
        self.main = nn.Sequential(*conv(i, o, 3, stride), nn.ReLU(inplace=True), *conv(o, o))
        self.down = nn.Sequential(*conv(i, o, 1, stride)) if i != o else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.main(x)
        out += self.down(x)
        return F.relu(out, inplace=True)


class Dense(nn.Module):
    """DenseNet: every layer reads all features before it, so that their gradients come from many places."""

    def __init__(self, channels: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(channels + growth * n), nn.ReLU(inplace=True),
                *conv(channels + growth * n, 2 * growth, 1), nn.ReLU(inplace=True),
                nn.Conv2d(2 * growth, growth, 3, 1, 1, bias=False),
            )
            for n in range(layers)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features, 1)


class Inverted(nn.Module):
    """MobileNetV2: an expansion, a depthwise convolution, a projection without an activation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 3 * channels
        self.main = nn.Sequential(
            *conv(channels, wide, 1),
            nn.ReLU6(),
            *conv(wide, wide, 3, groups=wide),
            nn.ReLU6(),
            *conv(wide, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.main(x)


class TwoBranches(nn.Module):
    """HRNet: two resolutions side by side, fused both ways."""

    def __init__(self, fine: int, coarse: int) -> None:
        super().__init__()
        self.split = nn.Sequential(*conv(fine, coarse, 3, 2), nn.ReLU())
        self.fine, self.coarse = Residual(fine, fine), Residual(coarse, coarse)
        self.up, self.down = nn.Sequential(*conv(coarse, fine, 1)), nn.Sequential(*conv(fine, coarse, 3, 2))

    def forward(self, x: Tensor) -> Tensor:
        fine, coarse = self.fine(x), self.coarse(self.split(x))
        mixed = F.relu(fine + F.interpolate(self.up(coarse), scale_factor=2.0))
        return torch.cat([mixed.mean((2, 3)), F.relu(coarse + self.down(fine)).mean((2, 3))], 1)


class Recurrent(nn.Module):
    """An RNN with one batch norm in its loop over time: used many times, and with a hidden state."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.cell, self.norm = nn.Linear(features + hidden, hidden), nn.BatchNorm1d(hidden)
        self.head = nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), self.cell.out_features)
        for at in x.unbind(1):
            state = torch.tanh(self.norm(self.cell(torch.cat([at, state], 1))))
        return self.head(state)


class TwoHeads(nn.Module):
    """Outputs in a dict; keyword inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.kind = nn.Linear(8, 3)
        self.size = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.SiLU(), nn.Linear(4, 1))

    def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        features = self.trunk(x * scale)
        return {"kind": self.kind(features), "size": self.size(features).squeeze(1)}


class Contrastive(nn.Module):
    """SimCLR: two views of each sample, an encoder called twice, a projection head with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*conv(3, 6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(24, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(self.encoder(one)), self.head(self.encoder(other))


class Segmenter(nn.Module):
    """An encoder and decoder with a skip, whose loss is pixel by pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(*conv(3, 6, 3, 2), nn.ReLU(), *conv(6, 6), nn.ReLU())
        self.skip = nn.Sequential(*conv(3, 4), nn.ReLU())
        self.out = nn.Sequential(*conv(10, 6), nn.ReLU(), nn.Conv2d(6, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([self.skip(x), F.interpolate(self.down(x), scale_factor=2.0)], 1))


def contrast(views: tuple[Tensor, Tensor]) -> Tensor:
    """NT-Xent over all samples: each is contrasted with every other of the batch."""
    z = F.normalize(torch.cat(views), dim=1)
    n = len(views[0])
    similar = (z @ z.T / 0.5).masked_fill(torch.eye(2 * n, dtype=torch.bool), -torch.inf)
    return F.cross_entropy(similar, torch.arange(2 * n).roll(n))


@dataclass(frozen=True)
class Task:
    model: nn.Module
    loss_fn: Callable[..., Tensor]
    inputs: Any
    targets: Any = None

    def forward(self, model: nn.Module) -> Any:
        if isinstance(self.inputs, dict):
            return model(**self.inputs)
        return model(*self.inputs) if isinstance(self.inputs, tuple) else model(self.inputs)

    def big(self, model: nn.Module) -> Tensor:
        """A step on the one batch, as torch users write it."""
        outputs = self.forward(model)
        loss = self.loss_fn(outputs) if self.targets is None else self.loss_fn(outputs, self.targets)
        loss.backward()
        return loss.detach()

    def in_parts(self, model: nn.Module, size: int = 4, **options: Any) -> Tensor:
        return bn.big_batch(model, self.loss_fn, self.inputs, self.targets, micro_batch_size=size, **options)


SAMPLES = 11  # micro-batches of 4: the last has 3


def pictures(size: int = 8, samples: int = SAMPLES) -> Tensor:
    """Pictures that drift, so that micro-batches have different statistics."""
    drift = torch.linspace(-2, 2, samples, dtype=torch.float64).reshape(-1, 1, 1, 1)
    return torch.randn(samples, 3, size, size, dtype=torch.float64) * (1.5 + drift.tanh()) + drift


def classes(samples: int = SAMPLES) -> Tensor:
    return torch.randint(0, 3, (samples,))


def headed(*layers: nn.Module, width: int) -> nn.Sequential:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)).double()


def resnet() -> Task:
    model = headed(*conv(3, 6), nn.ReLU(inplace=True), Residual(6, 6), Residual(6, 8, 2), Residual(8, 8), width=8)
    return Task(model, F.cross_entropy, pictures(), classes())


def densenet() -> Task:
    model = headed(nn.Conv2d(3, 6, 3), Dense(6, 3, 4), nn.BatchNorm2d(18), nn.ReLU(), width=18)
    return Task(model, F.cross_entropy, pictures(), classes())


def mobilenet() -> Task:
    return Task(
        headed(*conv(3, 5), nn.ReLU6(), Inverted(5), Inverted(5), width=5), F.cross_entropy, pictures(), classes()
    )


def hrnet() -> Task:
    model = nn.Sequential(*conv(3, 4), nn.ReLU(), TwoBranches(4, 6), nn.Linear(10, 3)).double()
    return Task(model, F.cross_entropy, pictures(), classes())


def rnn() -> Task:
    drift = torch.linspace(-2, 2, SAMPLES, dtype=torch.float64).reshape(-1, 1, 1)
    return Task(Recurrent(4, 6).double(), F.cross_entropy, torch.randn(SAMPLES, 5, 4).double() + drift, classes())


def two_heads() -> Task:
    def loss(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(outputs["kind"], targets["kind"]) + F.mse_loss(outputs["size"], targets["size"])

    x = torch.randn(SAMPLES, 6).double() + torch.linspace(-2, 2, SAMPLES).double().unsqueeze(1)
    return Task(
        TwoHeads().double(), loss, {"x": x, "scale": 2.0}, {"kind": classes(), "size": torch.randn(SAMPLES).double()}
    )


def contrastive() -> Task:
    x = pictures()
    return Task(Contrastive().double(), contrast, (x + 0.3 * torch.randn_like(x), x.flip(3)))


def segmentation() -> Task:
    return Task(Segmenter().double(), F.cross_entropy, pictures(), torch.randint(0, 3, (SAMPLES, 8, 8)))


TASKS = (resnet, densenet, mobilenet, hrnet, rnn, two_heads, contrastive, segmentation)


def assert_same_step(ours: nn.Module, theirs: nn.Module, rtol: float = 1e-10) -> None:
    """Gradients and buffers of two models agree to rounding: relative to the largest gradient of all."""
    grads = [p.grad for p in theirs.parameters() if p.grad is not None]
    largest = max(g.abs().max().item() for g in grads)
    for (name, p), q in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(
                q.grad, p.grad, rtol=rtol, atol=rtol * largest, msg=lambda m, n=name: f"{n}: {m}"
            )
    for (name, a), b in zip(theirs.named_buffers(), ours.buffers(), strict=True):
        torch.testing.assert_close(b, a, rtol=rtol, atol=rtol, msg=lambda m, n=name: f"{n}: {m}")


def compare(task: Task, size: int = 4, **options: Any) -> tuple[nn.Module, nn.Module]:
    """Compare a step in parts with one on the whole, from the same start; returns both models."""
    whole, parts = copy.deepcopy(task.model), copy.deepcopy(task.model)
    expected = task.big(whole)
    loss = task.in_parts(parts, size, **options)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    assert not loss.requires_grad
    assert_same_step(parts, whole)
    return parts, whole
