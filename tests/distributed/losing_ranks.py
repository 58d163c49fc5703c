"""One rank of `test_losing.py`: `python losing_ranks.py RANK WORLD_SIZE FOLDER`.

Four ranks start, and two are lost during the test. Each scene is a new process group of the ranks that are left. A
survivor records how long it waited, the error message, and which layers were updated; the assertions are in the test.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn

import batchnorm as bn
from tests.support.launch import meet

TIMEOUT = 3.0  # of the process groups, in seconds


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Identity(), nn.Linear(3, 3), nn.BatchNorm1d(3))
    return bn.convert(model, sync=True)


def state(layer: nn.Module) -> list[torch.Tensor]:
    return [layer.running_mean.clone(), layer.running_var.clone(), layer.num_batches_tracked.clone()]


def play(name: str, rank: int, ranks: int, folder: Path) -> dist.ProcessGroup:
    """One good step, then one in which the last rank is lost between its batch norms, or between its passes."""
    meet(folder, name, rank, ranks, TIMEOUT)
    model, x = network(), torch.randn(4, 3)
    model(x).sum().backward()
    before = [state(model[i]) for i in (1, 4)]
    last = rank == ranks - 1
    if last and name != "dies in the backward pass":
        model[2].register_forward_hook(lambda *_: SCENES[name]())
    started = time.monotonic()
    try:
        y = model(x)
        if last:
            SCENES[name]()
        y.sum().backward()
        said = "nothing"
    except (RuntimeError, KeyError) as error:
        said = f"{type(error).__name__}: {error}"
    seen = {"said": said, "waited": time.monotonic() - started}
    moved = [not all(map(torch.equal, state(model[i]), b)) for i, b in zip((1, 4), before, strict=True)]
    (folder / f"{name}, {rank}.json").write_text(json.dumps(seen | {"moved": moved}))
    group = dist.group.WORLD
    dist.destroy_process_group()
    return group


def raises() -> None:
    raise KeyError("something else went wrong on this rank")


def sleeps() -> None:
    time.sleep(1.5 * TIMEOUT)


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


SCENES = {"raises": raises, "dies": dies, "is stuck": sleeps, "dies in the backward pass": dies}


def go_on(old: dist.ProcessGroup, layer: bn.BatchNorm, rank: int, folder: Path) -> None:
    """In a smaller world: a layer that shares with everyone goes on; one that kept the old group is told."""
    meet(folder, "a smaller world", rank, 2, TIMEOUT)
    layer(torch.randn(4, 3))
    together = [torch.empty(3) for _ in range(2)]
    dist.all_gather(together, layer.running_mean)
    kept = bn.BatchNorm(3, process_group=old)
    try:
        kept(torch.randn(4, 3))
        said = "nothing"
    except RuntimeError as error:
        said = f"{type(error).__name__}: {error}"
    batches = [int(m.num_batches_tracked) for m in (layer, kept)]
    seen = {"said": said, "alike": torch.equal(*together), "batches": batches}
    (folder / f"a smaller world, {rank}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


def main(rank: int, ranks: int, folder: Path) -> None:
    torch.set_num_threads(1)
    layer = bn.BatchNorm(3, process_group=True)
    for name, left in zip(SCENES, (4, 4, 3, 3), strict=True):
        if rank < left:
            group = play(name, rank, left, folder)
    go_on(group, layer, rank, folder)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
