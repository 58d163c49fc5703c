"""One rank of `test_rules_ranks.py`: `python diagnosed_rank.py RANK FOLDER`. It prints the rules that were broken."""

import sys
from datetime import timedelta

import torch
from torch import distributed as dist
from torch import nn

import batchnorm as bn


def rules(shared: bool) -> list[str]:
    """Two ranks train on data of their own, with shared statistics or without."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    bn.convert(model, process_group=True if shared else None)
    for _ in range(60):
        model(torch.randn(32, 4) + 2 * dist.get_rank())
    return [f.rule for f in bn.diagnose(model, process_group=True).findings]


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    print(rules(shared=False), rules(shared=True))
    dist.destroy_process_group()
