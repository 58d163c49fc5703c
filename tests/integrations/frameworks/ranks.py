"""One rank: `python ranks.py RANK WORLD_SIZE FOLDER` runs the CASES of a module, as the environment names them."""

import importlib
import os
import sys
import warnings
from pathlib import Path

import torch
from torch import distributed as dist

from tests.integrations.frameworks.run import make_torchvision_importable
from tests.support.launch import meet

# Said by the frameworks, about themselves or about this machine.
THEIRS = (
    ".*does not have many workers.*",
    ".*torch.distributed.*is deprecated.*",
    ".*pin_memory.*",
    ".*isinstance\\(treespec, LeafSpec\\).*",
    ".*`broadcast_buffers` is deprecated.*",
)


def main(rank: int, ranks: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "NODE_RANK": "0"}
    os.environ |= {"LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # nobody asks there
    meet(folder, "meeting", rank, ranks)
    module, *cases = os.environ["CASES"].split()
    for message in THEIRS:
        warnings.filterwarnings("ignore", message)
    make_torchvision_importable()
    for case in cases:
        getattr(importlib.import_module(module), case)(rank, ranks, folder)
        (folder / f"{case}, {rank}.passed").touch()
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
