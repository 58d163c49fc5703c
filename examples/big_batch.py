"""Contrastive learning on digits: gradient accumulation, ghost batches and `bn.big_batch` beside one big batch.

The loss compares each picture with all others of its batch (SimCLR). In micro-batches of 4 there are few others, and
each micro-batch is normalised by itself: accumulating their gradients learns less. Ghost batches run one big forward
pass, in which 4 pictures at a time share statistics. `bn.big_batch` runs 4 pictures at a time and takes the step of the
big batch, except for rounding.

Source of the loss: Chen et al. 2020, "A simple framework for contrastive learning of visual representations".
"""

import copy
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import batchnorm as bn

BATCH, MICRO = 256, 4  # pictures

torch.manual_seed(0)
images = torch.tensor(load_digits().images, dtype=torch.float32).unsqueeze(1) / 16
order = torch.randperm(len(images))
x, rest = images[order[:1280]], images[order[1280:]]


def encoder() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Flatten(), nn.Linear(512, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16),
    )  # fmt: skip


def contrast(z: Tensor) -> Tensor:
    """The contrastive loss of z (N, 2, D): the two views of a picture against the 2·N − 2 others."""
    views = F.normalize(z.transpose(0, 1).flatten(0, 1), dim=1)
    similar = (views @ views.T / 0.2).masked_fill(torch.eye(len(views), dtype=torch.bool), -torch.inf)
    return F.cross_entropy(similar, torch.arange(len(views)).roll(len(z)))


class TwoViews(nn.Module):
    """(N, 2, 1, 8, 8) to (N, 2, D), as one batch of 2·N."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = encoder()

    def forward(self, pairs: Tensor) -> Tensor:
        return self.encoder(pairs.flatten(0, 1)).unflatten(0, (-1, 2))


def accumulation(model: nn.Module, pairs: Tensor) -> None:
    for micro in pairs.split(MICRO):
        (contrast(model(micro)) * len(micro) / len(pairs)).backward()


def one_batch(model: nn.Module, pairs: Tensor) -> None:
    contrast(model(pairs)).backward()


def in_parts(model: nn.Module, pairs: Tensor) -> None:
    bn.big_batch(model, contrast, pairs, micro_batch_size=MICRO)


def views(pictures: Tensor) -> Tensor:
    """Random views: moved by a pixel at most, lighter or darker, and noisy."""
    moved = torch.stack([torch.roll(p, tuple(torch.randint(-1, 2, (2,)).tolist()), (1, 2)) for p in pictures])
    return moved * (0.6 + 0.8 * torch.rand(len(pictures), 1, 1, 1)) + 0.25 * torch.randn_like(pictures)


@torch.no_grad()
def held_out_loss(model: TwoViews) -> float:
    """The loss on pictures that training does not see, in one batch, by the running statistics."""
    model.eval()
    loss = contrast(model(held_out)).item()
    model.train()
    return loss


def run(model: TwoViews, step: Callable[[nn.Module, Tensor], None], steps: int) -> list[float]:
    """The loss before, and after every 4 steps. Every way to train gets the same pictures in the same order."""
    torch.manual_seed(1)
    optimizer, curve = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), [held_out_loss(model)]
    for number in range(1, steps + 1):
        some = x[torch.randperm(len(x))[:BATCH]]
        pairs = torch.stack([views(some), views(some)], 1)
        optimizer.zero_grad()
        step(model, pairs)
        optimizer.step()
        if number % 4 == 0:
            curve.append(held_out_loss(model))
    return curve


def curves(steps: int) -> dict[str, list[float]]:
    """The held-out loss during training, for each way to train."""
    torch.manual_seed(0)
    start = TwoViews()
    ghosts = bn.convert(copy.deepcopy(start), virtual_batch_size=2 * MICRO)
    return {
        "accumulation": run(copy.deepcopy(start), accumulation, steps),
        "ghost batches": run(ghosts, one_batch, steps),
        "big batch": run(copy.deepcopy(start), one_batch, steps),
        "bn.big_batch": run(copy.deepcopy(start), in_parts, steps),
    }


held_out = torch.stack([views(rest), views(rest)], 1)

if __name__ == "__main__":
    found = curves(8)
    for name, curve in found.items():
        print(f"{name:14}", " ".join(f"{loss:.3f}" for loss in curve))
    assert abs(found["bn.big_batch"][-1] - found["big batch"][-1]) < 0.01
    assert abs(found["accumulation"][-1] - found["big batch"][-1]) > 0.03
