"""Train on one big batch exactly, one micro-batch at a time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from batchnorm.core.torch_internals import transformed, tree_leaves
from batchnorm.tools.progress import track
from batchnorm.training.borrowed_model import borrowed
from batchnorm.training.crew import Crew
from batchnorm.training.gradients import as_one_backward, leaves_of
from batchnorm.training.micro_batches import Stream, check_size, cut, is_stream
from batchnorm.training.parking import parking
from batchnorm.training.replicas import Replicas
from batchnorm.training.thread_state import without_autocast
from batchnorm.training.undo import unchanged_unless_finished


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
    """Run the exact forward and backward pass of one big batch, while the model runs on one micro-batch at a time.

    With batch norm, gradient accumulation is not the same as a big batch: each micro-batch is normalised by its own
    statistics. Here all micro-batches wait for one another at every batch norm that normalises by the batch, and are
    normalised by their merged moments. In the backward pass they wait for the sums of the gradients. So the loss, every
    gradient and the running statistics are those of the whole batch, up to rounding. Running statistics are updated
    once. After an error or an interrupt, buffers and gradients are as before.

    Args:
        model: torch's batch norms in it are `bn.convert`-ed for the call. In `DistributedDataParallel`, gradients are
            reduced once, at the end.
        loss_fn: called as loss_fn(outputs, targets), or loss_fn(outputs) without targets, with the outputs and targets
            of the whole batch. It returns one value, such as a mean or a sum.
        inputs: a tensor (N, *), or tensors in tuples, lists, dicts and named tuples, which are cut along dimension 0;
            everything else in them is the same for each micro-batch. The model is called as model(*inputs) if they
            are a tuple, model(**inputs) if a dict, else model(inputs). Or any other iterable, such as a `DataLoader`:
            of pairs (inputs, targets), or of inputs if `targets` are given.
        targets: whatever `loss_fn` takes.
        micro_batch_size: the number of samples in a micro-batch; the last may be smaller. Larger items of an iterable
            are cut further; None leaves them whole.
        offload: where to keep the tensors of micro-batches that wait: "cpu" for tensors of an accelerator, or a folder
            for a temporary file. By default they stay where they are.
        progress: True for a progress bar; None for one if stderr is a terminal and rich is installed.

    Returns:
        The loss, detached. Gradients are added to `.grad`.

    Raises:
        TypeError, ValueError: a `micro_batch_size` that is not a whole number ≥ 1; inputs without samples, or of
            different numbers of samples; outputs without the samples along dimension 0; a loss that is not one value.
        RuntimeError: micro-batches that call different batch norms; the call is inside `no_grad`.

    Dropout and other random draws: between two batch norms, the micro-batches draw from torch's generators one after
    another. A seed gives the same numbers in every run, but not the numbers of the big batch.

    Examples:
        >>> import torch, batchnorm as bn
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        >>> x, target = torch.randn(64, 4), torch.randint(0, 2, (64,))
        >>> loss = bn.big_batch(model, nn.functional.cross_entropy, x, target, micro_batch_size=16)
        >>> loss.dim(), model[1].num_batches_tracked.item(), model[0].weight.grad.shape
        (0, 1, torch.Size([8, 4]))

    Source: Ioffe & Szegedy 2015 (arXiv:1502.03167), algorithm 1, with moments merged as by Chan, Golub & LeVeque 1983.
    """
    _check_context()
    streamed = is_stream(inputs)
    check_size(micro_batch_size, streamed)
    stream = Stream(inputs, micro_batch_size, targets is None) if streamed else None
    batches = cut(inputs, micro_batch_size) if stream is None else stream
    replicas = Replicas(model)
    model = replicas.model
    with (
        borrowed(model),
        unchanged_unless_finished(model),
        parking(offload, model) as place,
        Crew(model, batches, place) as crew,
    ):
        replicas.share_buffers()
        _through(crew.forward(), "forward", progress)
        outputs = crew.outputs()
        targets = stream.targets() if stream is not None and targets is None else targets
        loss = _scalar(loss_fn(outputs) if targets is None else loss_fn(outputs, targets))
        apart = {id(leaf) for leaf in tree_leaves(outputs)}
        leaves = {id(t): t for t in [*leaves_of([loss, *crew.roots()]), *model.parameters()] if id(t) not in apart}
        with as_one_backward(leaves.values(), replicas.reduce), without_autocast():
            torch.autograd.backward(loss)
            _through(crew.backward(outputs), "backward", progress)
    return loss.detach()


def _check_context() -> None:
    if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        raise RuntimeError("big_batch computes gradients: call it outside of torch.no_grad and torch.inference_mode")
    if torch.compiler.is_compiling() or transformed():
        raise RuntimeError(
            "big_batch runs forward and backward passes: call it outside of torch.compile, torch.func and vmap"
        )


def _through(rounds: Any, label: str, progress: bool | None) -> None:
    for _ in track(rounds, label, progress):
        pass


def _scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"a tensor {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"expected loss_fn to return one value for the whole batch, got {found}; return a mean or sum")
    if not loss.requires_grad:
        raise ValueError("the loss depends on no parameter that requires a gradient: there is nothing to train")
    return loss
