"""Five networks trained at once with `torch.func`: their running statistics are returned, not written in place."""

import torch
from torch import nn

import batchnorm as bn

torch.manual_seed(0)
models, channels = 5, 8
state = {
    "weight": torch.ones(models, channels),
    "mean": torch.zeros(models, channels),
    "var": torch.ones(models, channels),
}

said = ""
try:
    torch.func.vmap(nn.BatchNorm1d(channels))(torch.randn(models, 64, channels))
except RuntimeError as error:  # vmap cannot write one pair of buffers in place for five models
    said = str(error).split(".")[0]
print(f"torch: {said}")
assert said


def loss(state, x, target):
    y, mean, var = bn.batch_norm(
        x, state["mean"], state["var"], weight=state["weight"], training=True, return_stats=True
    )
    return (y - target).square().mean(), {"mean": mean, "var": var}


step = torch.func.vmap(torch.func.grad(loss, has_aux=True))
for _ in range(50):
    x = torch.randn(models, 64, channels) * 3 + torch.arange(models).reshape(-1, 1, 1)
    gradient, population = step(state, x, 2 * (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True))
    state = {"weight": state["weight"] - 0.5 * channels * gradient["weight"], **population}

print("γ, wanted 2:            ", [f"{g:.2f}" for g in state["weight"].mean(1).tolist()])
print("running mean, data at i:", [f"{m:.2f}" for m in state["mean"].mean(1).tolist()])
assert (state["weight"] - 2).abs().max() < 0.05
assert (state["mean"].mean(1) - torch.arange(models)).abs().max() < 0.3
