"""One batch with an Inf: torch's layer gives NaN in evaluation from then on; ours does not update its statistics."""

import copy
import warnings

import torch
from torch import nn

import batchnorm as bn

torch.manual_seed(0)
theirs = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
ours = bn.convert(copy.deepcopy(theirs))  # nonfinite="skip" is the default
for step in range(20):
    x = torch.randn(16, 4)
    if step == 5:
        x[3, 2] = torch.inf  # an overflow under mixed precision, a corrupt sample
    for model in (theirs, ours):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            model(x)
        if said:
            print(said[0].message)

x = torch.randn(16, 4)
for name, model in (("torch", theirs), ("ours", ours)):
    print(f"{name:6} evaluates to finite values: {bool(model.eval()(x).isfinite().all())}")
print(f"ours counted {ours[1].skipped_batches} skipped batch")
assert not theirs(x).isfinite().any()
assert ours(x).isfinite().all()
