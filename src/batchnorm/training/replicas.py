"""DistributedDataParallel for a model that runs in micro-batches: buffers before the step, one reduction after it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from batchnorm.core import torch_internals


class Replicas:
    """The model in a DistributedDataParallel, and what this wrapper does before a forward and after a backward pass.

    Without a wrapper nothing is done.

    Raises:
        ValueError: a communication hook, which expects the wrapper's own buckets of gradients.
    """

    def __init__(self, model: nn.Module) -> None:
        self.wrapper = model if isinstance(model, DistributedDataParallel) else None
        self.model: nn.Module = model if self.wrapper is None else self.wrapper.module
        if self.wrapper is not None and torch_internals.has_communication_hook(self.wrapper):
            raise ValueError(
                "big_batch reduces the gradients of a DistributedDataParallel by itself, by a mean over the ranks: "
                "register no communication hook"
            )

    def share_buffers(self) -> None:
        """Copy the buffers of the first rank, if the wrapper does so before a forward pass."""
        if self.wrapper is not None:
            torch_internals.broadcast_buffers(self.wrapper)

    @property
    def reduce(self) -> Callable[[dict[int, Tensor]], dict[int, Tensor]] | None:
        """`mean`, if the wrapper would reduce gradients now; None without a wrapper and within `no_sync`."""
        return self.mean if self.wrapper is not None and self.wrapper.require_backward_grad_sync else None

    def mean(self, gradients: dict[int, Tensor]) -> dict[int, Tensor]:
        """The gradients, by the id of their parameter, as means over the ranks.

        A parameter that has a gradient on some ranks counts as zero on the others.
        """
        assert self.wrapper is not None
        group = self.wrapper.process_group
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        present = torch.tensor([id(p) in gradients for p in parameters], dtype=torch.int32, device=parameters[0].device)
        dist.all_reduce(present, dist.ReduceOp.MAX, group)
        found = [p for p, there in zip(parameters, present.tolist(), strict=True) if there]
        means = dict(gradients)
        for kind in dict.fromkeys((p.dtype, p.device) for p in found):
            alike = [p for p in found if (p.dtype, p.device) == kind]
            flat = torch.cat([gradients.get(id(p), torch.zeros_like(p)).detach().to_dense().flatten() for p in alike])
            dist.all_reduce(flat, group=group)
            flat /= dist.get_world_size(group)
            parts = flat.split([p.numel() for p in alike])
            means.update({id(p): part.view_as(p).clone() for p, part in zip(alike, parts, strict=True)})
        return means
