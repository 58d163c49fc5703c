"""A rank that raises, dies or is stuck: every survivor is told which layer, rank and step, within the group's timeout.

No layer is half updated: the layer before the loss has been updated by the step, the one that failed has not.
"""

import json
import re
import signal
from pathlib import Path

import pytest
import torch

from tests.distributed.losing_ranks import SCENES, TIMEOUT
from tests.support.launch import finish, start

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the survivors have written what they saw."""
    folder = tmp_path_factory.mktemp("ranks")
    ended = finish(start(Path(__file__).with_name("losing_ranks.py"), 4, folder))
    assert [code for code, _ in ended] == [0, 0, -signal.SIGKILL, -signal.SIGKILL], ended
    return folder


SURVIVORS = {"raises": (4, 3), "dies": (4, 3), "is stuck": (3, 2), "dies in the backward pass": (3, 2)}


@pytest.mark.parametrize("scene", SCENES)
def test_every_survivor_is_told(folder: Path, scene: str) -> None:
    ranks, survivors = SURVIVORS[scene]
    for rank in range(survivors):
        seen = json.loads((folder / f"{scene}, {rank}.json").read_text())
        assert re.match(
            rf"SharingError: 4: BatchNorm1d\(3\), step 2: rank {rank} of {ranks} could not exchange", seen["said"]
        ), seen
        assert seen["waited"] < TIMEOUT + 2
        assert seen["moved"] == [True, scene == "dies in the backward pass"]


def test_who_raises_gets_its_own_error_and_who_wakes_up_is_told(folder: Path) -> None:
    assert json.loads((folder / "raises, 3.json").read_text())["said"].startswith("KeyError: 'something else")
    woken = json.loads((folder / "is stuck, 2.json").read_text())
    assert woken["said"].startswith("SharingError: 4: BatchNorm1d(3), step 2: rank 2 of 3")
    assert woken["moved"] == [True, False]


def test_a_smaller_world(folder: Path) -> None:
    """A layer that shares with everyone goes on; one with a group of before is told so, and remembers nothing."""
    for rank in range(2):
        seen = json.loads((folder / f"a smaller world, {rank}.json").read_text())
        assert seen["alike"]
        assert seen["batches"] == [1, 0]
        assert seen["said"].startswith("SharingError: BatchNorm(3), step 1: rank"), seen
