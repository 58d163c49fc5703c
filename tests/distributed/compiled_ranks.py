"""One rank of `test_compiled.py`: `python compiled_ranks.py RANK WORLD_SIZE FOLDER`.

It compiles layers that share statistics, also under DistributedDataParallel, and shards a model by FSDP. It writes to
FOLDER how far each is from eager mode without sharding, and the collectives of the graphs.
"""

import copy
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

import batchnorm as bn
from tests.support.launch import meet

with warnings.catch_warnings():  # torch scripts a part of itself when these are imported
    warnings.simplefilter("ignore")
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd
    from torch.distributed.fsdp import fully_shard


def network(sync: bool) -> nn.Sequential:
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    return bn.convert(theirs, fuse=True, sync=sync).double()


def batch(rank: int, step: int) -> Tensor:
    g = torch.Generator().manual_seed(10 * step + rank)
    x = torch.randn(4, 3, 6, 6, generator=g, dtype=torch.float64) * (1 + rank) + rank
    return x.to(memory_format=torch.channels_last)


def train(model: nn.Module, rank: int, forwards: int = 1) -> list[Tensor]:
    """Two steps: outputs, parameters and statistics."""
    seen = []
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for step in range(2):
        optimizer.zero_grad()
        outputs = [model(batch(rank, 10 * step + i)) for i in range(forwards)]
        torch.stack([y.sin().sum() for y in outputs]).sum().backward()
        optimizer.step()
        seen += [y.detach() for y in outputs]
    return [*seen, *(whole(t) for t in model.state_dict().values())]


def whole(t: Any) -> Tensor:
    return (t.full_tensor() if hasattr(t, "full_tensor") else t).detach().clone()


def far(got: list[Tensor], wanted: list[Tensor]) -> float:
    return max((a.double() - b.double()).abs().max().item() for a, b in zip(got, wanted, strict=True))


class Graphs:
    """A backend that runs what it is given and counts collectives, in each direction."""

    def __init__(self) -> None:
        self.collectives: list[int] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        def count(graph: torch.fx.GraphModule, inputs: Any) -> Any:
            names = [str(n.target) for n in graph.graph.nodes if n.op == "call_function"]
            self.collectives.append(sum("all_gather" in n or "all_reduce" in n for n in names))
            return make_boxed_func(graph)

        return aot_autograd(fw_compiler=count, bw_compiler=count)(graph, inputs)


def synchronised(rank: int) -> dict[str, Any]:
    layer = bn.SyncBatchNorm(3, activation="silu").double()
    eager, graphs = copy.deepcopy(layer), Graphs()
    compiled = torch.compile(layer, fullgraph=True, backend=graphs)
    results = []
    for call in (compiled, eager):
        x = batch(rank, 0).requires_grad_()
        y = call(x)
        y.cos().sum().backward()
        results.append([y.detach(), x.grad, *(p.grad for p in call.parameters()), *call.buffers()])
    strides = [t.stride() for t in results[0][:2]], [t.stride() for t in results[1][:2]]
    return {"far": far(*results), "collectives": graphs.collectives, "strides": strides}


def main(rank: int, world_size: int, folder: Path) -> None:
    for of_torch in (FutureWarning, DeprecationWarning):  # of its compiler, about itself
        warnings.simplefilter("ignore", of_torch)
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)  # the same
    torch.set_num_threads(1)
    meet(folder, "group", rank, world_size)
    found: dict[str, Any] = {"synchronised": synchronised(rank)}
    for sync in (False, True):
        for forwards in (1, 2):
            wanted = train(DistributedDataParallel(network(sync)), rank, forwards)
            compiled = torch.compile(DistributedDataParallel(network(sync)), backend="aot_eager")
            found[f"compiled, {sync=}, {forwards=}"] = far(train(compiled, rank, forwards), wanted)
    wanted = train(DistributedDataParallel(network(True)), rank)
    sharded = network(True)
    for layer in sharded:
        if list(layer.parameters()):
            fully_shard(layer)
    found["fully sharded"] = far(train(fully_shard(sharded), rank), wanted)
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
