"""A network with and without batch norm: accuracy during training, and one channel before and after batch norm."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import batchnorm as bn

digits = load_digits()
x, y = torch.from_numpy(digits.data).float() / 16, torch.from_numpy(digits.target)
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
train, test = order[:1400], order[1400:]
rates = (1.0, 2.0, 3.0)


def make_network(norm: type[nn.Module]) -> nn.Sequential:
    """Three sigmoid layers; `norm` is a batch norm, or nn.Identity for a network without."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, 100), norm(100), nn.Sigmoid(),
        nn.Linear(100, 100), norm(100), nn.Sigmoid(),
        nn.Linear(100, 100), norm(100), nn.Sigmoid(),
        nn.Linear(100, 10),
    )  # fmt: skip


def curve(model: nn.Module, rate: float) -> list[float]:
    """The accuracy on the test part after every 20 of 1000 steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    found = []
    for step in range(1000):
        batch = train[torch.randint(len(train), (60,))]
        loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 19:
            with torch.no_grad():
                found.append((model.eval()(x[test]).argmax(1) == y[test]).float().mean().item())
            model.train()
    return found


curves = {}
for name, norm in (("with", bn.BatchNorm1d), ("without", nn.Identity)):
    for rate in rates:
        model = make_network(norm)
        curves[name, rate] = curve(model, rate)
        print(f"{name:7} batch norm, learning rate {rate:4}: accuracy {curves[name, rate][-1]:.2f} after 1000 steps")
best = {name: max(rates, key=lambda rate: sum(curves[name, rate])) for name in ("with", "without")}
print(f"best rates: {best}")

model = make_network(bn.BatchNorm1d)
with torch.no_grad():
    before = model[0](x[train])[:, 3]  # one channel
    after = model[1](model[0](x[train]))[:, 3]
print(f"one channel: mean {before.mean():.2f} → {after.mean():.2f}, deviation {before.std():.2f} → {after.std():.2f}")
assert torch.equal(before.argsort(stable=True), after.argsort(stable=True))  # the order is kept
assert curves["with", best["with"]][-1] > 0.9
assert curves["with", best["with"]][9] > curves["without", best["without"]][9] + 0.3
