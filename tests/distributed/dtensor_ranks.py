"""One rank of `test_dtensor.py`: `python dtensor_ranks.py RANK WORLD_SIZE FOLDER`.

It writes to FOLDER, for every placement of the input, how far output, gradients and running statistics are from those
of the whole batch in one process; also the collectives of a forward pass, and the error of a plain input to a
distributed layer.
"""

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

import batchnorm as bn
from tests.support.launch import meet

with warnings.catch_warnings():  # torch scripts a part of itself when these are imported
    warnings.simplefilter("ignore")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
    from torch.distributed.tensor.debug import CommDebugMode

PLACEMENTS = {"replicated": Replicate(), "samples": Shard(0), "channels": Shard(1), "positions": Shard(2)}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "fused": {"activation": "silu"},
    "renorm": {"renorm": bn.Renorm(1.5, 0.5)},
}


def step(layer: nn.Module, x: Tensor, grad: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y = layer(x)
    y.backward(grad)
    return [y, x.grad, layer.weight.grad, layer.bias.grad, layer.running_mean, layer.running_var]


def collectives(training: bool, x: DTensor) -> dict[str, int]:
    """Those of a forward pass, by name."""
    layer = distribute_module(bn.BatchNorm2d(4, dtype=torch.float64), x.device_mesh).train(training)
    with CommDebugMode() as seen:
        layer(x)
    return {kind.__name__: count for kind, count in seen.get_comm_counts().items()}


def whole(t: Tensor) -> Tensor:
    return t.full_tensor() if isinstance(t, DTensor) else t


def main(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    meet(folder, "group", rank, world_size)
    mesh = init_device_mesh("cpu", (world_size,))
    g = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(6, 4, 4, 3, generator=g, dtype=torch.float64) + offset for offset in (5.0, 0.2))
    errors: dict[Any, Any] = {}
    for name, options in OPTIONS.items():
        wanted = step(bn.BatchNorm2d(4, dtype=torch.float64, **options), x, grad)
        for where, placement in PLACEMENTS.items():
            layer = distribute_module(bn.BatchNorm2d(4, dtype=torch.float64, **options), mesh)
            got = step(layer, *(distribute_tensor(t.clone(), mesh, [placement]) for t in (x, grad)))
            errors[name, where] = max((whole(a) - b).abs().max().item() for a, b in zip(got, wanted, strict=True))
    for training in (True, False):
        sharded = distribute_tensor(x.clone(), mesh, [PLACEMENTS["samples"]])
        errors["collectives", training] = collectives(training, sharded)
    try:
        distribute_module(bn.BatchNorm2d(4, dtype=torch.float64), mesh)(x)
    except RuntimeError as error:
        errors["plain input"] = str(error)
    torch.save(errors, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
