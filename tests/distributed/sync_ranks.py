"""One rank of `test_sync.py`: `python sync_ranks.py RANK WORLD_SIZE FOLDER`.

It runs the cases in turn, each against one process on the whole batch (computed by every rank for itself), and stops at
the first that differs.
"""

import copy
import sys
import warnings
from pathlib import Path

import torch
from hypothesis import Phase, given, settings
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

import batchnorm as bn
from tests.support import option_matrix as matrix
from tests.support.launch import meet

EACH = 4  # samples of a rank


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.SiLU(),
        nn.Flatten(), nn.Linear(4 * 4 * 4, 5),
    )  # fmt: skip


def data(ranks: int, steps: int) -> Tensor:
    """(steps, ranks·EACH, 3, 8, 8); ranks see different data."""
    g = torch.Generator().manual_seed(0)
    drift = torch.linspace(-3, 3, ranks * EACH, dtype=torch.float64).view(-1, 1, 1, 1)
    return torch.randn(steps, ranks * EACH, 3, 8, 8, generator=g, dtype=torch.float64) + drift


def own(rank: int) -> slice:
    return slice(rank * EACH, (rank + 1) * EACH)


def three_steps_under_ddp(rank: int, ranks: int) -> None:
    """Two micro-batches a step: the first in `no_sync`, which holds back gradients but not statistics."""
    one = bn.convert(network().double())
    many = DistributedDataParallel(bn.convert(network().double(), sync=True))
    optimizers = [torch.optim.SGD(m.parameters(), 0.1, momentum=0.9) for m in (one, many)]
    for first, second in data(ranks, 6).view(3, 2, -1, 3, 8, 8):
        (one(first).square().mean() + one(second).square().mean()).backward()
        with many.no_sync():
            many(first[own(rank)]).square().mean().backward()
        many(second[own(rank)]).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    compare_models(many.module, one)


def compare_models(many: nn.Module, one: nn.Module) -> None:
    for (name, a), b in zip(many.state_dict().items(), one.state_dict().values(), strict=True):
        assert_close(a, b, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def layouts_and_dtypes(rank: int, ranks: int) -> None:
    for dtype, rtol in ((torch.float64, 1e-12), (torch.bfloat16, 0.02), (torch.float16, 0.003)):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x = data(ranks, 1)[0].to(dtype).contiguous(memory_format=memory_format)
            whole, shared = (bn.BatchNorm2d(3, process_group=p).to(dtype) for p in (None, True))
            a, b = (
                x.double().clone().requires_grad_(),
                x[own(rank)].clone(memory_format=torch.preserve_format).requires_grad_(),
            )
            wanted, got = copy.deepcopy(whole).double()(a), shared(b)
            assert got.is_contiguous(memory_format=memory_format)
            assert_close(got.double(), wanted[own(rank)], rtol=rtol, atol=rtol)
            weights = a.detach().sin()
            wanted.backward(weights)
            got.backward(weights[own(rank)].to(dtype))
            assert_close(b.grad.double(), a.grad[own(rank)], rtol=rtol, atol=rtol)
            whole(x)
            assert_close(shared.running_var, whole.running_var, rtol=rtol, atol=0)


def subgroups(rank: int, ranks: int) -> None:
    """Ranks 1 and 2 share, so that a rank's number in its group is another than in the world; the first is by itself,
    which is plain batch norm. Second derivatives too."""
    groups = [dist.new_group(members) for members in ([0], [1, 2])]
    layer, whole = (bn.BatchNorm2d(3, process_group=p).double() for p in (groups[rank > 0], None))
    x = data(ranks, 1)[0]
    results = []
    for norm, values in (layer, x[own(rank)]), (whole, x[:EACH] if rank == 0 else x[EACH:]):
        leaf = values.clone().requires_grad_()
        y = norm(leaf)
        (slope,) = torch.autograd.grad(y.pow(3).sum(), leaf, create_graph=True)
        slope.square().sum().backward()
        results.append((y, slope, leaf.grad))
    for mine, wanted in zip(*results, strict=True):
        assert_close(mine, wanted[own(max(rank - 1, 0))])
    assert_close(layer.running_var, whole.running_var)


def one_rank_is_not_finite(rank: int, ranks: int) -> None:
    """A GradScaler skips the step everywhere, and every rank's population skips the same channel."""
    model = DistributedDataParallel(bn.convert(network(), sync=True))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step, x in enumerate(data(ranks, 3).float()):
        if step == 1 and rank == 1:
            x[own(1)][0, 0] = torch.inf
        before = copy.deepcopy(model.module.state_dict())
        scaler.scale(model(x[own(rank)]).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        moved = {k for k, v in model.module.state_dict().items() if not torch.equal(v, before[k])}
        assert any("weight" in k for k in moved) == (step != 1), moved
        assert any("running" in k for k in moved) == (step != 1), moved
    assert scaler.get_scale() == 2.0
    for layer in (model.module[1], model.module[4]):
        assert layer.skipped_batches == 1
        agree(torch.stack([layer.running_mean, layer.running_var]), ranks)


def agree(t: Tensor, ranks: int) -> None:
    """Bitwise equal on all ranks, and finite."""
    everyone = [torch.empty_like(t) for _ in range(ranks)]
    dist.all_gather(everyone, t.detach())
    assert t.isfinite().all()
    assert all(torch.equal(t, other) for other in everyone)


def compiled(rank: int, ranks: int) -> None:
    x = data(ranks, 1)[0]
    eager = bn.convert(network()[:5].double(), sync=True)
    model = copy.deepcopy(eager)
    fast = torch.compile(model, fullgraph=True, backend="aot_eager")
    results = []
    for m in (eager, fast):
        leaf = x[own(rank)].clone().requires_grad_()
        y = m(leaf)
        (y * leaf.detach().sin().mean()).square().sum().backward()
        results.append([y.detach(), leaf.grad])
    for a, b in zip(*results, strict=True):
        assert_close(a, b, rtol=1e-10, atol=1e-10)
    compare_models(model, eager)


def matrix_of_options(rank: int, ranks: int) -> None:
    """Settings of the matrix test, cut between the ranks, against its oracle on the whole."""

    def fits(s: matrix.Setting) -> bool:
        """Virtual batches exclude sharing, and torch's operator does not share."""
        return s.virtual is None and s.shape[0] > 1 and s.backend != "aten"

    def total(t: Tensor) -> Tensor:
        t = t.double()
        dist.all_reduce(t)
        return t

    drawn = []

    @settings(max_examples=40, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
    @given(matrix.SETTINGS.filter(fits))
    def draw(s: matrix.Setting) -> None:  # the same on every rank, and no second try where one fails
        drawn.append(s)

    draw()
    for s in drawn:
        cut = s.shape[0] * 2 // 3  # ragged, and nothing for the last rank
        matrix.compare(s, [slice(0, cut), slice(cut, None), slice(0, 0)][rank], total, group=True)


CASES = (
    three_steps_under_ddp,
    layouts_and_dtypes,
    subgroups,
    one_rank_is_not_finite,
    matrix_of_options,
    compiled,
)


def main(rank: int, ranks: int, folder: Path) -> None:
    torch.set_num_threads(1)
    meet(folder, "meeting", rank, ranks)
    for case in CASES:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*are not finite", RuntimeWarning)  # said where that is the case's point
            warnings.filterwarnings("ignore", ".*should not be instantiated", DeprecationWarning)  # dynamo does it
            case(rank, ranks)
        (folder / f"{case.__name__}, {rank}.passed").touch()
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
