"""Steps of several micro-batches over several ranks, and the oracle: one process, torch's layers, updated by hand."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]
LR, MOMENTUM, EACH = 0.05, 0.1, 6  # EACH: samples of a rank in a micro-batch


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.BatchNorm1d(3), nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)
    ).double()  # fmt: skip


def loss(model: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def data(ranks: int, micro_batches: int) -> list[list[Batch]]:
    """For each rank its micro-batches; no two alike in mean or spread."""
    g = torch.Generator().manual_seed(1)
    found: list[list[Batch]] = [[] for _ in range(ranks)]
    for number in range(micro_batches):
        for rank in range(ranks):
            x = torch.randn(EACH, 3, generator=g, dtype=torch.float64) * (1 + number) + 3 * rank - 2 * number
            found[rank].append((x, x.sum(1, keepdim=True).sin()))
    return found


def one_process(ranks: int, steps: Iterable[int], divisor: int) -> nn.Sequential:
    """The model after steps of so many micro-batches, each of them one batch of all ranks.

    The running statistics are moved once for each step, by the mean and the unbiased variance of everything that the
    layer got in it. `divisor` divides every micro-batch's loss.
    """
    model = network()
    norms = [m for m in model if isinstance(m, nn.BatchNorm1d)]
    seen: dict[nn.Module, list[Tensor]] = {m: [] for m in norms}
    for norm in norms:
        norm.momentum = 0.0  # moved by hand
        norm.register_forward_pre_hook(lambda m, args: seen[m].append(args[0].detach()))
    steps = list(steps)
    micro_batches = iter(list(zip(*data(ranks, sum(steps)), strict=True)))
    optimizer = torch.optim.SGD(model.parameters(), LR)
    for step in steps:
        for _ in range(step):
            parts = next(micro_batches)
            whole = torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
            (loss(model, whole) / divisor).backward()
        optimizer.step()
        optimizer.zero_grad()
        for norm in norms:
            everything = torch.cat(seen[norm])
            seen[norm].clear()
            norm.running_mean.lerp_(everything.mean(0), MOMENTUM)
            norm.running_var.lerp_(everything.var(0), MOMENTUM)
    for norm in norms:
        norm.num_batches_tracked.fill_(len(steps))
    return model


def compare(model: nn.Module, wanted: nn.Module) -> None:
    """Weights, running statistics and counters are those of the oracle."""
    ours = model.state_dict()
    for name, value in wanted.state_dict().items():
        torch.testing.assert_close(
            ours[name], value, rtol=1e-11, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}"
        )


def exact_statistics(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of what the second batch norm gets if the first normalises `x` as one batch."""
    first, linear = model[0], model[1]
    between = linear(nn.functional.batch_norm(x, None, None, first.weight, first.bias, True, 0.0, first.eps)).detach()
    return between.mean(0), between.var(0)
