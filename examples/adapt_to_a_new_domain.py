"""The new pictures are darker and noisier: `bn.adapt` moves the running statistics towards them, without labels."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import batchnorm as bn

torch.manual_seed(0)
digits = load_digits()
x, y = torch.from_numpy(digits.images).float().unsqueeze(1) / 16, torch.from_numpy(digits.target)
model = nn.Sequential(
    nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
    nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.ReLU(),
    nn.Flatten(), nn.Linear(32 * 4 * 4, 10),
)  # fmt: skip
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(120):
    batch = torch.randint(0, 1200, (64,))
    loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model.eval()


def accuracy(images: torch.Tensor) -> float:
    with torch.no_grad():
        return (model(images).argmax(1) == y[1200:]).float().mean().item()


new = 0.3 * x[1200:] + 0.5 + 0.03 * torch.randn_like(x[1200:])
clean, before = accuracy(x[1200:]), accuracy(new)
adaptation = bn.adapt(model, new.split(100), prior=16)
after = accuracy(new)
print(f"accuracy: {clean:.2f} at home, {before:.2f} in the new domain, {after:.2f} adapted (no labels used)")
print({name: f"{shift:.1f} σ" for name, shift in adaptation.shift.items()})
assert after > before + 0.2
adaptation.restore()
assert accuracy(x[1200:]) == clean
