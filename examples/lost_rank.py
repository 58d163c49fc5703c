"""One of two processes dies in training. The other gets an error that names the layer and the step."""

import tempfile
from datetime import timedelta

import torch
from torch import distributed as dist
from torch import multiprocessing, nn

import batchnorm as bn


def main(rank: int, folder: str) -> None:
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", meeting, rank=rank, world_size=2, timeout=timedelta(seconds=5))
    model = bn.convert(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), sync=True)
    for step in range(3):
        if rank == 1 and step == 2:
            return  # as if killed
        before, said = model[1].running_mean.clone(), ""
        try:
            model(torch.randn(8, 4))
        except RuntimeError as error:
            said = str(error)
    print(said)
    assert "1: BatchNorm1d(4), step 3: rank 0 of 2" in said
    assert torch.equal(model[1].running_mean, before)  # no partial update: this state can be saved


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(main, (folder,), nprocs=2)
