"""What is remembered: the running statistics, and how a batch moves them."""

from typing import Literal

import torch
from torch import Tensor

from batchnorm.moments import Moments

NonFinite = Literal["skip", "raise", "propagate"]


def moved(
    running_mean: Tensor, running_var: Tensor, batch: Moments, momentum: float | Tensor, nonfinite: NonFinite
) -> tuple[Tensor, Tensor]:
    """The population after `batch`: each statistic s becomes (1 − momentum)·s + momentum·s_batch.

    The variance remembered is the unbiased one. A channel whose batch statistics are not finite keeps its old values
    under "skip", takes them under "propagate", and raises `FloatingPointError` under "raise".
    """
    news = batch.mean, batch.unbiased_variance
    olds = running_mean.detach().to(news[0].dtype), running_var.detach().to(news[1].dtype)
    mean, var = (old + (new.detach() - old) * momentum for old, new in zip(olds, news, strict=True))
    if nonfinite != "propagate":
        finite = (news[0].isfinite() & news[1].isfinite()).detach()
        if nonfinite == "raise" and not finite.all():
            channels = (~finite).nonzero().flatten().tolist()
            raise FloatingPointError(
                f"the batch statistics of channels {channels} are not finite, and nonfinite='raise'; "
                "nothing was remembered. Look for NaN or Inf in the input, or pass nonfinite='skip'"
            )
        mean, var = torch.where(finite, mean, olds[0]), torch.where(finite, var, olds[1])
    return mean.to(running_mean.dtype), var.to(running_var.dtype)


def remember(running_mean: Tensor, running_var: Tensor, new: tuple[Tensor, Tensor]) -> None:
    """Write a moved population into the buffers."""
    with torch.no_grad():
        running_mean.copy_(new[0])
        running_var.copy_(new[1])
