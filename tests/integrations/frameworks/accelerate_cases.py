"""Cases that `test_accelerate.py` runs on two ranks."""

from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

import batchnorm as bn
from batchnorm.integrations.accelerate import accumulate, calibrate
from tests.integrations.frameworks import steps


def trained(
    rank: int, ranks: int, micro_batches: int, sync: bool
) -> tuple[Accelerator, torch.nn.Module, list[steps.Batch]]:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    assert accelerator.num_processes == ranks
    net = bn.convert(steps.network(), sync=sync)
    dealt = [batch for parts in zip(*steps.data(ranks, micro_batches), strict=True) for batch in parts]
    rows = TensorDataset(*(torch.cat(parts) for parts in zip(*dealt, strict=True)))
    model, optimizer, loader = accelerator.prepare(
        net, torch.optim.SGD(net.parameters(), steps.LR), DataLoader(rows, steps.EACH)
    )
    for batch in loader:
        with accumulate(accelerator, model):
            accelerator.backward(steps.loss(model, batch))
            optimizer.step()
            optimizer.zero_grad()
    return accelerator, model, steps.data(ranks, micro_batches)[rank]


def accumulated_and_shared(rank: int, ranks: int, folder: Path) -> None:
    """Steps of 2, 2 and 1 micro-batches."""
    accelerator, model, _ = trained(rank, ranks, 5, sync=True)
    steps.compare(accelerator.unwrap_model(model), steps.one_process(ranks, (2, 2, 1), 2))


def calibrated(rank: int, ranks: int, folder: Path) -> None:
    """Ranks with different numbers of batches: DistributedDataParallel's own forward pass would wait for ever."""
    accelerator, model, mine = trained(rank, ranks, 4, sync=False)
    mine = mine[: 4 - 2 * rank]
    calibrate(accelerator, model, mine)
    everything = torch.cat([x for r in range(ranks) for x, _ in steps.data(ranks, 4)[r][: 4 - 2 * r]])
    net = accelerator.unwrap_model(model)
    wanted = steps.exact_statistics(net, everything)
    torch.testing.assert_close((net[2].running_mean, net[2].running_var), wanted, rtol=1e-10, atol=1e-10)
    assert net[2].num_batches_tracked == 2
