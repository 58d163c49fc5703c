"""Two processes share statistics on CPUs, with batches of 7 and 1; torch's SyncBatchNorm raises an error.

`python several_processes.py` starts two ranks on this machine; torchrun starts them on any number of machines.
"""

import os
import subprocess
import sys

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import batchnorm as bn


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)  # the same network and data on every rank
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 6))
    x = torch.randn(8, 3, 8, 8) + torch.arange(8).view(8, 1, 1, 1)
    mine = slice(0, 7) if rank == 0 else slice(7, 8)

    try:
        nn.SyncBatchNorm(3)(x[mine])
    except ValueError as error:
        print(f"rank {rank}, torch: {error}", flush=True)

    wanted = network(x)[mine].detach()  # one process, the whole batch
    model = DistributedDataParallel(bn.convert(network, sync=True))
    y = model(x[mine])
    y.square().mean().backward()
    error = (y - wanted).abs().max().item()
    print(f"rank {rank}, ours: {len(y)} samples, as in one process on all 8 to {error:.0e}", flush=True)
    assert error < 1e-5
    dist.barrier()  # wait for the other rank
    dist.destroy_process_group()


if __name__ == "__main__":
    if "RANK" in os.environ:
        main()
    else:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        sys.exit(subprocess.call([*torchrun, __file__]))
