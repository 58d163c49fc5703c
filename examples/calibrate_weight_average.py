"""Averaged weights need new running statistics. Those of update_bn depend on the split of the data, ours do not."""

import copy

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

import batchnorm as bn

torch.manual_seed(0)
digits = load_digits()
x = torch.from_numpy(digits.images).float().unsqueeze(1)
x = x[torch.from_numpy(digits.target).argsort()]  # sorted by class, as files on a disk may be
average = AveragedModel(
    nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.2),
        nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
    )
)  # fmt: skip
truth = copy.deepcopy(average)
bn.calibrate(truth, [x])  # all the data as one batch


def error(batches: tuple[torch.Tensor, ...], how: str) -> float:
    model = copy.deepcopy(average)
    if how == "update_bn":
        update_bn(batches, model)
    else:
        bn.calibrate(model, batches, exact=how == "calibrate")
    ours, exact = model.module[5].running_var, truth.module[5].running_var
    return ((ours - exact).abs() / exact).max().item()


print(f"{'batches of':>12} {'update_bn':>10} {'one pass':>10} {'calibrate':>10}   largest relative error of a variance")
for size in (500, 100, 20):
    errors = [error(x.split(size), how) for how in ("update_bn", "one pass", "calibrate")]
    print(f"{size:12d} " + " ".join(f"{e:10.1e}" for e in errors))
    assert errors[2] < 1e-4 < errors[0]
