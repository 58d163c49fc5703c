"""One rank of `test_composition.test_ranks`: ``python ranks.py package:Class RANK FOLDER ROWS ROWS``."""

import sys
from datetime import timedelta

import torch
from torch import distributed as dist

from batchnorm.conformance import oracle
from batchnorm.conformance.conftest import load


def main(name: str, rank: int, folder: str, rows: list[int]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    g = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(sum(rows), 3, 4, 2, generator=g, dtype=torch.float64) + o for o in (5.0, 0.2))
    own = slice(sum(rows[:rank]), sum(rows[: rank + 1]))
    layer = load(name)(3).double()
    mine = x[own].clone().requires_grad_()
    y = layer(mine)
    y.backward(grad[own])
    assert mine.grad is not None
    exact = oracle.gradients(x, grad, torch.ones(3), torch.zeros(3))[0]
    assert oracle.error(y, oracle.normalized(x)[own]) < 1e-10, "outputs"
    assert oracle.error(mine.grad, exact[own]) < 1e-9, "gradients"
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], [int(n) for n in sys.argv[4:]])
