"""Two real processes: shared statistics compile to one graph; data parallelism and sharding change no result."""

from pathlib import Path

import pytest
import torch

from tests.support.launch import finish, start

RANKS = 2


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    for code, said in finish(start(Path(__file__).with_name("compiled_ranks.py"), RANKS, folder)):
        assert code == 0, said
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


def test_synchronised_layers_compile_to_one_graph_with_one_collective_each_way(found):
    for of_rank in found:
        seen = of_rank["synchronised"]
        assert seen["far"] < 1e-9
        assert seen["collectives"] == [1, 1], "one forward, one backward; a break of the graph would add more"
        assert seen["strides"][0] == seen["strides"][1], "channels_last stays"


@pytest.mark.parametrize("forwards", [1, 2])
@pytest.mark.parametrize("sync", [False, True])
def test_compiled_around_data_parallel(found, sync, forwards):
    """Two forward passes before a backward pass, too."""
    for of_rank in found:
        assert of_rank[f"compiled, {sync=}, {forwards=}"] < 1e-9


def test_fully_sharded_parameters(found):
    """FSDP divides a sum of gradients as DistributedDataParallel does; statistics are those of all ranks."""
    for of_rank in found:
        assert of_rank["fully sharded"] < 1e-9
