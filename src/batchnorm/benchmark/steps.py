"""The functions that are timed: a call is a step of a layer or of a whole network."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from batchnorm.benchmark.agreement import judge
from batchnorm.benchmark.cases import DTYPES, Case
from batchnorm.benchmark.memory import kept
from batchnorm.benchmark.whole_networks import EVERY, WIDTH
from batchnorm.tools.convert import convert

Step = Callable[[], object]


def both_ways(layer: nn.Module, case: Case) -> Step:
    """A function for a forward and backward pass in training, which then deletes all gradients."""
    inputs = [t.requires_grad_() for t in case.inputs()]
    leaves, gradient = [*inputs, *layer.parameters()], case.gradient()

    def step() -> None:
        layer(*inputs).backward(gradient)
        for leaf in leaves:
            leaf.grad = None

    return step


def forward(layer: nn.Module, case: Case) -> Step:
    """A function for a forward pass in training, which saves what a backward pass needs."""
    inputs = [t.requires_grad_() for t in case.inputs()]
    return lambda: layer(*inputs)


def images(batch: int, pixels: int, layout: str) -> tuple[Tensor, Tensor]:
    """Random images and labels."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, pixels, pixels, generator=draw)
    x = x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x
    return x, torch.randint(1000, (batch,), generator=draw)


def rows(batch: int) -> tuple[Tensor, Tensor]:
    """Random rows of features for the MLP, and labels."""
    draw = torch.Generator().manual_seed(0)
    return torch.randn(batch, WIDTH, generator=draw), torch.randint(10, (batch,), generator=draw)


def variants(name: str, layout: str = "contiguous", **options: str) -> dict[str, nn.Module]:
    """The network with torch's layers, with ours in their place, and with ours fused by hand; with equal weights."""
    make = EVERY[name]
    models: dict[str, nn.Module] = {
        "torch": make(**options),
        "converted": convert(make(**options)),
        "fused": make(fused=True, **options),
    }
    for model in models.values():
        model.load_state_dict(models["torch"].state_dict())
        if layout == "channels_last":
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return models


def training(model: nn.Module, x: Tensor, labels: Tensor, dtype: str) -> Step:
    """A function for a whole training step, under autocast for 16 bits: SGD for images, Adam for rows."""
    adam = x.dim() == 2
    optimizer = (torch.optim.Adam if adam else torch.optim.SGD)(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", DTYPES[dtype], enabled=dtype != "float32"):
            loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()

    return step


def check_networks(where: str, models: dict[str, nn.Module], x: Tensor, dtype: str) -> None:
    """Compare the outputs of a training-mode forward pass with float64, as `agreement.check` does for one layer.

    Raises:
        DisagreementError: an error above twice that of the network with torch's layers plus eps·max|exact|.
    """
    name = where.split()[0]
    wide = EVERY[name]().double()
    wide.load_state_dict(models["torch"].state_dict())
    exact = {"output": _output(wide, x.double(), "float64")}
    found = {kind: {"output": _output(model, x, dtype)} for kind, model in models.items()}
    for kind in found.keys() - {"torch"}:
        judge(f"{where}, {kind}", found[kind], found["torch"], exact)


def _output(model: nn.Module, x: Tensor, dtype: str) -> Tensor:
    for module in model.modules():
        if isinstance(module, nn.Dropout):  # its mask differs from call to call
            module.eval()
    with torch.no_grad(), torch.autocast("cpu", DTYPES[dtype], enabled=dtype == "bfloat16"):
        y: Tensor = model(x)
    model.train()
    return y


def kept_by(name: str, activation: str, x: Tensor) -> dict[str, int]:
    """Bytes that each variant of the network, with this activation throughout, keeps for its backward pass."""
    return {kind: kept(model, x) for kind, model in variants(name, activation=activation).items()}
