"""One rank of `test_ddp.py`: `python ddp_ranks.py RANK WORLD_SIZE FOLDER`.

It trains under DistributedDataParallel over gloo, once with torch's layers and once with ours, and writes its results
to FOLDER; the assertions are in `test_ddp.py`.
"""

import sys
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import batchnorm as bn


def network(ours: bool) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 2), nn.BatchNorm2d(4, momentum=None)
    )
    return (bn.convert(model) if ours else model).double()


def batch(rank: int, step: int) -> torch.Tensor:
    """Ranks see different data, so that only a broadcast makes their buffers alike."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(5, 3, 6, 6, generator=generator, dtype=torch.float64) * (1 + rank) + 3 * rank + step


def train(model: DistributedDataParallel, rank: int, forwards: int) -> dict[str, torch.Tensor]:
    """Three steps of `forwards` forwards before one backward; the state after, and every gradient on the way."""
    seen = {}
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for step in range(3):
        optimizer.zero_grad()
        losses = [model(batch(rank, 10 * step + i)).sin().sum() for i in range(forwards)]
        sum(losses).backward()
        for name, parameter in model.module.named_parameters():
            seen[f"step {step}, grad of {name}"] = parameter.grad.clone()
        optimizer.step()
    return seen | {name: t.clone() for name, t in model.module.state_dict().items()}


def main(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size, timeout=timedelta(seconds=60)
    )
    results = {}
    for forwards in (1, 2):
        for broadcast in (True, False):
            for ours in (True, False):
                model = DistributedDataParallel(network(ours), broadcast_buffers=broadcast)
                results[forwards, broadcast, ours] = train(model, rank, forwards)
        for sync in (False, True):
            for recompute in (False, True):
                own = bn.convert(network(True), fuse=True, sync=sync, recompute=recompute)
                results[forwards, sync, recompute, "recompute"] = train(DistributedDataParallel(own), rank, forwards)
    torch.save(results, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
