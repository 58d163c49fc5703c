"""Layers over two real processes as DTensors: however the input is sharded, the result is that of the whole batch."""

from pathlib import Path

import torch

from tests.support.launch import finish, start


def test_every_placement_gives_the_whole_batch(tmp_path: Path) -> None:
    for code, said in finish(start(Path(__file__).with_name("dtensor_ranks.py"), 2, tmp_path)):
        assert code == 0, said
    for rank in range(2):
        errors = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert "mixed torch.Tensor and DTensor" in errors.pop("plain input")
        # sums of one value a channel, where torch's own layer gathers the input
        assert errors.pop(("collectives", True)) == {"all_reduce": 8}
        assert errors.pop(("collectives", False)) == {}
        assert len(errors) == 12
        for case, error in errors.items():
            assert error < 1e-12, (rank, case, error)
