"""One rank of `test_big_batch_ranks.py`: `python big_batch_ranks.py RANK WORLD_SIZE FOLDER`.

Each case runs micro-batches on every rank, against one process on the whole batch, which every rank computes by itself.
"""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

import batchnorm as bn
from tests.support.big_batch_networks import Residual, assert_same_step, conv, headed, pictures
from tests.support.launch import meet

EACH = 7  # samples of a rank: micro-batches of 3, 3 and 1


def network() -> nn.Module:
    torch.manual_seed(0)
    return headed(*conv(3, 4), nn.ReLU(), Residual(4, 4), Residual(4, 6, 2), width=6)


def data(ranks: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return pictures(samples=EACH * ranks), torch.randint(0, 3, (EACH * ranks,))


def own(rank: int) -> slice:
    return slice(rank * EACH, (rank + 1) * EACH)


def whole(model: nn.Module, x: Tensor, t: Tensor) -> Tensor:
    loss = F.cross_entropy(model(x), t)
    loss.backward()
    return loss.detach()


def micro_batches_and_ranks_are_one_batch(rank: int, ranks: int) -> None:
    """Two steps, and more gradients onto those that are there; one reduction each."""
    (x, t), one = data(ranks), bn.convert(network())
    many = DistributedDataParallel(bn.convert(network(), sync=True))
    reductions: list[int] = []
    all_reduce = dist.all_reduce

    def counted(values: Tensor, *args: object, **keywords: object) -> object:
        if values.numel() == sum(p.numel() for p in one.parameters()):
            reductions.append(values.numel())
        return all_reduce(values, *args, **keywords)

    dist.all_reduce = counted
    try:
        for _ in range(2):
            expected = whole(one, x, t)
            loss = bn.big_batch(many, F.cross_entropy, x[own(rank)], t[own(rank)], micro_batch_size=3)
            all_reduce(loss)
            assert_close(loss / ranks, expected)
    finally:
        dist.all_reduce = all_reduce
    assert len(reductions) == 2
    assert_same_step(many.module, one)


def torch_sync_layers(rank: int, ranks: int) -> None:
    """torch's SyncBatchNorm, which refuses CPU tensors by itself; ranks with different numbers of micro-batches."""
    (x, t), one = data(ranks), network()
    model = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(one))
    whole(one, x, t)
    size = 3 if rank else 2
    loss_fn = lambda y, t: F.cross_entropy(y, t) / ranks  # noqa: E731
    bn.big_batch(model, loss_fn, x[own(rank)], t[own(rank)], micro_batch_size=size)
    for p in model.parameters():
        dist.all_reduce(p.grad)
    assert type(model[1]) is nn.SyncBatchNorm
    assert_same_step(model, one)


def ranks_by_themselves(rank: int, ranks: int) -> None:
    """As DistributedDataParallel without sharing: buffers come from the first rank, gradients are means."""
    x, t = data(ranks)
    theirs = DistributedDataParallel(bn.convert(network()))
    ours = DistributedDataParallel(network())
    for step in range(3):
        whole(theirs, x[own(rank)], t[own(rank)])
        if step == 1:
            with ours.no_sync():
                bn.big_batch(ours, F.cross_entropy, x[own(rank)], t[own(rank)], micro_batch_size=4)
            local = [p.grad.clone() for p in ours.parameters()]
            gathered = [torch.empty_like(local[0]) for _ in range(ranks)]
            dist.all_gather(gathered, local[0])
            assert not torch.equal(*gathered[:2])
            for model in (theirs, ours):
                model.zero_grad()
        else:
            bn.big_batch(ours, F.cross_entropy, x[own(rank)], t[own(rank)], micro_batch_size=4)
            assert_same_step(ours.module, theirs.module)


def a_parameter_that_one_rank_does_not_use(rank: int, ranks: int) -> None:
    class Pick(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(nn.Linear(3, 2) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.parts[rank](x)

    model = DistributedDataParallel(Pick())
    bn.big_batch(model, torch.sum, torch.ones(4, 3), micro_batch_size=2)
    for part in model.module.parts[:2]:
        assert_close(part.bias.grad, torch.full((2,), 4.0 / ranks))
    assert model.module.parts[2].bias.grad is None


def a_communication_hook_is_refused(rank: int, ranks: int) -> None:
    model = DistributedDataParallel(nn.Linear(3, 2))
    model.register_comm_hook(None, lambda state, bucket: dist.all_reduce(bucket.buffer(), async_op=True).get_future())
    with pytest.raises(ValueError, match="register no communication hook"):
        bn.big_batch(model, torch.sum, torch.ones(4, 3), micro_batch_size=2)


CASES = (
    micro_batches_and_ranks_are_one_batch,
    torch_sync_layers,
    ranks_by_themselves,
    a_parameter_that_one_rank_does_not_use,
    a_communication_hook_is_refused,
)


def main(rank: int, ranks: int, folder: Path) -> None:
    torch.set_num_threads(1)
    meet(folder, "meeting", rank, ranks)
    for case in CASES:
        case(rank, ranks)
        (folder / f"{case.__name__}, {rank}.passed").touch()
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
