"""Fine-tuning with frozen statistics: eval() lasts until the next train(), bn.freeze lasts until bn.unfreeze."""

import copy

import torch
from torch import nn

import batchnorm as bn

torch.manual_seed(0)
theirs = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
ours = copy.deepcopy(theirs)
theirs[1].eval()
bn.freeze(ours)  # γ and β still train; affine=True freezes them too
for name, model in (("torch", theirs), ("ours", ours)):
    model.train()  # every training loop does this at the start of an epoch
    before = model[1].running_mean.clone()
    model(torch.randn(32, 4) + 3)
    kept = torch.equal(model[1].running_mean, before)
    print(f"{name:6} statistics kept: {kept}")
    assert kept == (name == "ours")

fresh = bn.convert(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)))
fresh.load_state_dict(ours.state_dict())
print(f"saved and loaded: frozen={fresh[1].frozen!r}")
nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)).load_state_dict(ours.state_dict())  # torch's layers load it too
assert fresh[1].frozen == "statistics"
