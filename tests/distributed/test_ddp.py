"""DistributedDataParallel with real processes: as torch's layers, with and without the broadcast of buffers."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORLD_SIZE, SECONDS = 2, 400
# torch 2.13 renames the argument; older ones know the old name only
WARNINGS = ["-W", "error", "-W", "ignore:`broadcast_buffers` is deprecated:FutureWarning"]

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What every rank saw; the ranks meet in a file, so no port can be taken."""
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).with_name("ddp_ranks.py")
    ranks = [
        subprocess.Popen(
            [sys.executable, *WARNINGS, str(script), str(rank), str(WORLD_SIZE), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(WORLD_SIZE)
    ]
    try:
        outputs = [process.communicate(timeout=SECONDS)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    for process, output in zip(ranks, outputs, strict=True):
        assert process.returncode == 0, output
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD_SIZE)]


forwards = pytest.mark.parametrize("forwards", [1, 2], ids=["one forward", "two forwards before one backward"])
broadcast = pytest.mark.parametrize("broadcast", [True, False], ids=["broadcast", "no broadcast"])


@forwards
@broadcast
def test_as_torch(results, broadcast, forwards):
    for seen in results:
        ours, theirs = seen[forwards, broadcast, True], seen[forwards, broadcast, False]
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name], rtol=1e-9, atol=1e-9, msg=name)


@forwards
@broadcast
def test_ranks_agree_where_they_should(results, broadcast, forwards):
    """Parameters and gradients always; buffers differ by the last batch, or by all of them without a broadcast."""
    one, other = (seen[forwards, broadcast, True] for seen in results)
    for name, value in one.items():
        if "running" in name:
            assert not torch.equal(value, other[name]), name
        else:
            assert torch.equal(value, other[name]), name


@forwards
def test_the_broadcast_matters(results, forwards):
    """What rank 1 remembers depends on it: otherwise the tests above would not see it fail."""
    with_it, without = (results[1][forwards, b, True]["1.running_mean"] for b in (True, False))
    assert not torch.allclose(with_it, without, rtol=1e-3)


def test_every_forward_is_counted(results):
    for times in (1, 2):
        assert results[0][times, True, True]["1.num_batches_tracked"] == 3 * times


@forwards
@pytest.mark.parametrize("sync", [False, True])
def test_the_same_bits_with_recompute(results, forwards, sync):
    for seen in results:
        without, with_it = (seen[forwards, sync, recompute, "recompute"] for recompute in (False, True))
        assert without.keys() == with_it.keys()
        assert all(torch.equal(value, with_it[name]) for name, value in without.items())
