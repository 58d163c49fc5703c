"""Running statistics: their update by a batch, and windows of micro-batches that update them once."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from batchnorm.core.moments import Moments
from batchnorm.core.rules import NonFinite
from batchnorm.core.validation import check_memory


def move(
    running_mean: Tensor,
    running_var: Tensor,
    batches: Tensor | None,
    batch: Moments,
    momentum: float | Tensor | None,
    nonfinite: NonFinite,
    label: str = "batch_norm",
) -> Tensor:
    """Update running statistics by `batch` in place, and count the batch; returns the mask of skipped channels.

    A momentum of None averages over all batches counted so far.
    """
    check_memory("running_mean", running_mean)
    check_memory("running_var", running_var)
    if batches is not None:
        check_memory("num_batches_tracked", batches)
    if momentum is None:
        if batches is None:
            raise ValueError("a cumulative average (momentum=None) needs num_batches_tracked")
        momentum = 1.0 / (batches.to(batch.mean.dtype) + 1)  # 1 over an integer tensor would be float32
    mean, var, skipped = moved(running_mean, running_var, batch, momentum, nonfinite, label)
    with torch.no_grad():
        running_mean.copy_(mean)
        running_var.copy_(var)
        if batches is not None:
            batches.add_(1)
    return skipped


def update_in_place(
    running_mean: Tensor,
    running_var: Tensor,
    batches: Tensor | None,
    skips: Tensor | None,
    mean: Tensor,
    var: Tensor,
    momentum: float | Tensor | None,
    skip_unfit: bool,
) -> None:
    """The same update in the buffers' precision, for a batch's `mean` and unbiased `var` (C,) of two values or more.

    It takes few operations, since each is a launch on an accelerator. The host waits for none of them. `skips` counts
    the batches that were skipped in some channel.
    """
    with torch.no_grad():
        if batches is not None:
            batches.add_(1)
        if momentum is None:
            if batches is None:
                raise ValueError("a cumulative average (momentum=None) needs num_batches_tracked")
            momentum = 1.0 / batches.to(running_mean.dtype)
        news = [new.to(running_mean.dtype) for new in (mean, var)]
        if skip_unfit:
            largest = min(torch.finfo(t.dtype).max for t in (running_var, var))  # larger values would be Inf there
            fit = torch.stack((mean, var)).abs().amax(0) <= largest  # False for NaN
            news = [torch.where(fit, new, old) for new, old in zip(news, (running_mean, running_var), strict=True)]
            if skips is not None:
                skips.add_((~fit).any())
        running_mean.lerp_(news[0], momentum)
        running_var.lerp_(news[1], momentum)


def moved(
    running_mean: Tensor,
    running_var: Tensor,
    batch: Moments,
    momentum: float | Tensor,
    nonfinite: NonFinite,
    label: str = "batch_norm",
) -> tuple[Tensor, Tensor, Tensor]:
    """The running statistics (C,) after `batch`, and the mask of channels skipped for values that are not finite.

    Each statistic s becomes (1 − momentum)·s + momentum·s_batch, with the unbiased variance. Channels with fewer than
    two values (a mask may leave so few) keep their old ones. A channel whose batch statistics are `unfit` keeps its old
    values under "skip" and takes the new ones under "propagate". Under "raise" a `FloatingPointError` names the layer
    by `label`.
    """
    news = batch.mean.detach(), batch.unbiased_variance.detach()
    olds = running_mean.detach().to(news[0].dtype), running_var.detach().to(news[1].dtype)
    mean, var = (old + (new - old) * momentum for old, new in zip(olds, news, strict=True))
    enough = torch.zeros_like(mean) + batch.count > 1
    not_fit = unfit(batch, running_var.dtype)
    if nonfinite == "raise":
        # opaque to compilers, which cannot trace an error that depends on values
        refuse = torch.ops.batchnorm.refuse.default if torch.compiler.is_compiling() else refuse_unfit
        not_fit = refuse(not_fit, str(running_var.dtype), label)
    known = enough if nonfinite == "propagate" else enough & ~not_fit
    mean, var = torch.where(known, mean, olds[0]), torch.where(known, var, olds[1])
    return mean.to(running_mean.dtype), var.to(running_var.dtype), not_fit


def refuse_unfit(not_fit: Tensor, dtype: str, label: str) -> Tensor:
    """Copy `not_fit`; if any channel is set, raise an error that names the channels and the layer."""
    if not_fit.any():
        channels = not_fit.nonzero().flatten().tolist()
        raise FloatingPointError(
            f"{label}: the batch statistics of channels {channels} are not finite in {dtype}, and nonfinite='raise'; "
            "the running statistics were not updated. Look for NaN or Inf in the input, or pass nonfinite='skip'"
        )
    return not_fit.clone()


def unfit(batch: Moments, dtype: torch.dtype) -> Tensor:
    """Channels (C,) whose statistics are NaN, Inf, or too large for buffers of `dtype`."""
    largest = torch.finfo(dtype).max
    mean, var = batch.mean.detach(), batch.unbiased_variance.detach()
    return (torch.zeros_like(mean) + batch.count > 1) & ~((mean.abs() <= largest) & (var <= largest))


@dataclass
class Window:
    """Micro-batches that count as one batch: `add` returns their merged moments after `steps` of them.

    `drain` returns those of a window that is not full. The merge is that of `Moments.merge`.
    """

    steps: int | None
    taken: int = 0
    moments: Moments | None = None

    def add(self, batch: Moments) -> Moments | None:
        """Add a micro-batch; returns the window's moments if the window is complete."""
        self.moments = batch if self.moments is None else self.moments.merge(batch)
        self.taken += 1
        return self.drain() if self.taken == self.steps else None

    def drain(self) -> Moments | None:
        """Return the moments added so far, and start a new window."""
        moments, self.moments, self.taken = self.moments, None, 0
        return moments


class Bank(nn.Module):
    """One of several sets of running statistics of a layer, with separate γ and β if `affine`."""

    def __init__(self, layer: nn.Module, affine: bool) -> None:
        super().__init__()
        self.affine = affine
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, copy.deepcopy(getattr(layer, name)))
        for name in ("weight", "bias"):
            self.register_parameter(name, copy.deepcopy(getattr(layer, name)) if affine else None)
