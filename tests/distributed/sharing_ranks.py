"""One rank of `test_sharing.py`: `python sharing_ranks.py RANK FOLDER SPLIT…`.

It writes to FOLDER how far its outputs, gradients (of both orders) and running statistics are from those of the whole
batch.
"""

import sys
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor
from torch import distributed as dist

import batchnorm as bn


def step(layer: bn.BatchNorm, x: Tensor, grad: Tensor, mask: Tensor | None, twice: bool) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = layer(x, mask=mask)
    (dx,) = torch.autograd.grad(y, x, grad, create_graph=twice)
    second = torch.autograd.grad((dx * grad.flip(1)).sum(), x) if twice else ()
    return [y.detach(), dx.detach(), *second, layer.running_mean, layer.running_var]


def main(rank: int, folder: Path, splits: list[int]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=len(splits), timeout=timedelta(seconds=60)
    )
    g = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(8, 3, 4, generator=g, dtype=torch.float64) + offset for offset in (5.0, 0.2))
    some = torch.rand(8, 4, generator=g) < 0.7
    some[-1] = False  # with the split (7, 1) the mask leaves the last rank nothing
    own = slice(sum(splits[:rank]), sum(splits[: rank + 1]))
    errors = {}
    for mask in (None, some):
        for twice in (False, True):
            whole, mine = (bn.BatchNorm(3, activation="silu", process_group=p).double() for p in (None, True))
            wanted = step(whole, x, grad, mask, twice)
            got = step(mine, x[own], grad[own], None if mask is None else mask[own], twice)
            per_sample = len(got) - 2
            wanted = [w[own] if i < per_sample else w for i, w in enumerate(wanted)]
            worst = max((a - b).abs().max().item() if a.numel() else 0.0 for a, b in zip(got, wanted, strict=True))
            errors[mask is not None, twice] = worst
    if rank == len(splits) - 1:  # leaves while the others wait for it
        torch.save(errors, folder / f"{rank}.pt")
        dist.destroy_process_group()
        return
    try:
        mine(x[own])
    except RuntimeError as error:
        errors["lost"] = f"{type(error).__name__}: {error}", mine.num_batches_tracked.item()
    torch.save(errors, folder / f"{rank}.pt")
    dist.destroy_process_group()  # gloo's threads do not always survive the end of the interpreter


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), [int(n) for n in sys.argv[3:]])
