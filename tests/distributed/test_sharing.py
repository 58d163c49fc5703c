"""Statistics shared between real gloo processes are those of one big batch; a lost rank raises a clear error."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.parametrize("splits", [(4, 4), (7, 1), (8, 0), (3, 0, 5)], ids=str)
def test_ranks_together_are_one_batch(splits, tmp_path):
    program = Path(__file__).with_name("sharing_ranks.py")
    commands = [[sys.executable, program, str(r), str(tmp_path), *map(str, splits)] for r in range(len(splits))]
    ranks = [subprocess.Popen(c, stderr=subprocess.PIPE, text=True) for c in commands]
    for rank, process in enumerate(ranks):
        _, stderr = process.communicate(timeout=400)
        assert process.returncode == 0, f"rank {rank}: {stderr}"
    for rank in range(len(splits)):
        seen = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        said, batches = seen.pop("lost", (None, None))
        assert len(seen) == 4
        for case, error in seen.items():
            assert error < 1e-13, (rank, case, error)
        if rank < len(splits) - 1:
            assert said is not None, f"rank {rank} did not notice"
            assert said.startswith(
                f"SharingError: BatchNorm(3), step 2: rank {rank} of {len(splits)} could not exchange"
            )
            assert batches == 1  # the step that failed is not counted
