"""One big batch, exactly, from micro-batches."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from batchnorm.tools.progress import track
from batchnorm.training.borrowed_model import borrowed
from batchnorm.training.crew import Crew
from batchnorm.training.gradients import as_one_backward, leaves_of
from batchnorm.training.micro_batches import Stream, check_size, cut, is_stream
from batchnorm.training.thread_state import without_autocast
from batchnorm.training.undo import unmoved_unless_finished


def big_batch(
    model: nn.Module,
    loss_fn: Callable[..., Tensor],
    inputs: Any,
    targets: Any = None,
    *,
    micro_batch_size: int | None,
    offload: Any = None,
    progress: bool | None = False,
) -> Tensor:
    """Docstring."""
    streamed = is_stream(inputs)
    check_size(micro_batch_size, streamed)
    stream = Stream(inputs, micro_batch_size, targets is None) if streamed else None
    batches = cut(inputs, micro_batch_size) if stream is None else stream
    with borrowed(model), unmoved_unless_finished(model), Crew(model, batches) as crew:
        for _ in track(crew.forward(), "forward", progress):
            pass
        outputs = crew.outputs()
        targets = stream.targets() if stream is not None and targets is None else targets
        loss = loss_fn(outputs) if targets is None else loss_fn(outputs, targets)
        apart = {id(leaf) for leaf in tree_leaves(outputs)}
        leaves = [leaf for leaf in leaves_of([loss, *crew.roots()]) if id(leaf) not in apart]
        with as_one_backward({id(t): t for t in [*leaves, *model.parameters()]}.values()), without_autocast():
            torch.autograd.backward(loss)
            for _ in track(crew.backward(outputs), "backward", progress):
                pass
    return loss.detach()
