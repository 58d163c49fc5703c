"""Micro-batches on two real gloo processes are one big batch; DistributedDataParallel reduces once a step."""

from pathlib import Path

import pytest
import torch

from tests.distributed.big_batch_ranks import CASES
from tests.support.launch import finish, start

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, str]]]:
    folder = tmp_path_factory.mktemp("ranks")
    return folder, finish(start(Path(__file__).with_name("big_batch_ranks.py"), 2, folder))


@pytest.mark.parametrize("case", [case.__name__ for case in CASES])
def test_ranks_and_micro_batches_together(folder: tuple[Path, list[tuple[int, str]]], case: str) -> None:
    where, ended = folder
    missing = [rank for rank in range(2) if not (where / f"{case}, {rank}.passed").exists()]
    assert not missing, "\n".join(said for _, said in ended)


def test_every_rank_ends_well(folder: tuple[Path, list[tuple[int, str]]]) -> None:
    assert [code for code, _ in folder[1]] == [0, 0], folder[1]
