"""Batches of day and night pictures in turn: one set of running statistics fits neither; `bn.domain` keeps two sets."""

import copy

import torch
from torch import nn

import batchnorm as bn

torch.manual_seed(0)
theirs = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
ours = bn.convert(copy.deepcopy(theirs))
day, night = (lambda: torch.rand(16, 3, 8, 8)), (lambda: torch.rand(16, 3, 8, 8) * 0.1)
for _ in range(200):
    for domain, draw in (("day", day), ("night", night)):
        x = draw()
        theirs(x)
        with bn.domain(ours, domain):  # created at first use; affine=True adds separate γ and β
            ours(x)
for model in (theirs, ours):
    model.eval()
for domain, draw in (("day", day), ("night", night)):
    x = draw()
    with bn.domain(ours, domain):
        spread = [model(x).std((0, 2, 3)).mean().item() for model in (theirs, ours)]
    print(f"{domain:6} standard deviation of the output, wanted 1: torch {spread[0]:.2f}, ours {spread[1]:.2f}")
    assert abs(spread[1] - 1) < 0.1 < abs(spread[0] - 1)
again = bn.convert(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
again.load_state_dict(ours.state_dict())  # with the running statistics of both domains
assert set(again[1].banks) == {"day", "night"}
