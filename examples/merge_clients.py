"""Two clients with different data: an average of variances leaves out the variance between the clients' means."""

import torch
from torch import nn

import batchnorm as bn

torch.manual_seed(0)
data = [torch.randn(400, 1) - 2, torch.randn(100, 1) + 2]
clients = []
for x in data:
    client = nn.BatchNorm1d(1)
    bn.calibrate(client, [x])
    clients.append(client)

merged = bn.merge(clients, weights=[len(x) for x in data])
everything = torch.cat(data)
naive = sum(len(x) * c.running_var for x, c in zip(data, clients, strict=True)) / len(everything)
truth, ours = everything.var().item(), merged.running_var.item()
print(f"variance of all data {truth:.3f}, merged {ours:.3f}, averaged {naive.item():.3f}")
assert abs(ours / truth - 1) < 0.01
assert abs(merged.running_mean.item() - everything.mean().item()) < 1e-6
assert naive.item() < 0.5 * truth
