"""Running statistics computed exactly from data, instead of by a moving average."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.core.moments import Moments
from batchnorm.tools.model_populations import Populations, bank, evaluating, populations, unless_finished, write
from batchnorm.tools.sweep import Feed, Sweep, feed_by_default


@dataclass(frozen=True)
class Calibration:
    """The result of `calibrate`; `restore` undoes it.

    `before` and `after` hold (running_mean, running_var, num_batches_tracked) per layer; `unused` names the layers
    that no batch reached, which are unchanged. `converged` is None if no tolerance was given.
    """

    layers: dict[str, _BatchNorm]
    before: Populations
    after: Populations
    batches: int
    passes: int
    converged: bool | None
    unused: tuple[str, ...] = ()

    def restore(self) -> None:
        """Put the running statistics back to their values from before, bit for bit."""
        self.before.restore(self.layers)

    def apply(self) -> None:
        """Set the calibrated statistics again, after `restore`."""
        self.after.restore(self.layers)

    @property
    def shift(self) -> dict[str, float]:
        """Per layer, the largest change of a channel's mean, in σ."""
        return {name: shift(self.before.values[name], self.after.values[name]) for name in self.layers}

    def __str__(self) -> str:
        early = {None: "all of the data", True: "stopped early, converged", False: "not converged"}[self.converged]
        far, worst = max(((s, name) for name, s in self.shift.items()), default=(0.0, "no layer"))
        unused = f"; no batch reached {', '.join(self.unused)}" if self.unused else ""
        return (
            f"{len(self.layers)} batch norms, {self.batches} batches, {self.passes} passes ({early}); "
            f"the mean moved most in {worst}, by {far:.2g} σ{unused}"
        )


def calibrate(
    model: nn.Module,
    batches: Any,
    *,
    exact: bool = True,
    feed: Feed = feed_by_default,
    limit: int | None = None,
    tolerance: float | None = None,
    process_group: Any = None,
    progress: bool | None = None,
) -> Calibration:
    """Set the running statistics of every batch norm to those of all the data (precise batch norm).

    The input of a layer depends on the statistics of the layers before it. Exact statistics are those of one training
    step on all the data as one batch. They are computed level by level: each layer's mean and variance are pooled over
    all batches, while the layers before it normalise by their own pooled mean and (biased) variance. So the result does
    not depend on how the data are split into batches or ranks, up to rounding. This takes one pass over the data per
    level; the longest chain of batch norms gives the number of levels. A pass ends at its level, so that it costs about
    half a forward pass on average.

    ``exact=False`` takes one pass in which each batch is normalised by its own statistics, as in training: the first
    level is exact, later levels depend on the batch size.

    Only batch norms change: everything else is in evaluation mode (no dropout), without gradients. Layers without
    running statistics and frozen layers (`bn.freeze`, or in evaluation mode in a model in training mode) do not change.
    A layer called several times per batch gets the statistics of all calls. Weight averages
    (`torch.optim.swa_utils.AveragedModel`) need this after averaging.

    Args:
        model: its running statistics change in place.
        exact: False for one pass with statistics of single batches.
        batches: a list, a DataLoader, or a function that returns an iterator; the same data in every pass (an
            iterator works with ``exact=False`` only).
        feed: called as feed(model, batch). By default it calls model(batch), with the first element of a tuple or list,
            and with a dict as keywords.
        limit: the largest number of batches to use.
        tolerance: stop a pass when doubling the data changed no mean by more than `tolerance`·σ and no variance by
            more than that share; `converged` is True if every pass stopped early.
        process_group: True (all ranks) or a group: every rank has its own batches, or none; all get the statistics
            of all the data.
        progress: True for a progress bar; None for one if stderr is a terminal and rich is installed.

    Returns:
        A `Calibration`: before, after, `restore()`.

    Raises:
        TypeError: a single batch in place of batches.
        ValueError: no batches, nothing to calibrate, one value per channel in all the data, an iterator when exact.
        FloatingPointError: NaN or Inf in the input of a layer. After it, or an interrupt, the model is as before.

    Examples:
        >>> import torch, batchnorm as bn
        >>> layer = bn.BatchNorm(1)
        >>> _ = bn.calibrate(layer, [torch.tensor([[1.0], [2.0]]), torch.tensor([[6.0]])])
        >>> layer.running_mean.item(), layer.running_var.item()
        (3.0, 7.0)

    Source: Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm" (arXiv:2105.07576), section 3 (precise BN).
    """
    layers = populations(model)
    if not layers:
        raise ValueError("the model has no batch norm whose running statistics are updated: none, or all are frozen")
    sweep = Sweep(model, layers, batches, feed, limit, tolerance, process_group, progress)
    with unless_finished(layers) as before, evaluating(model):
        if exact:
            found = sweep.level_by_level(lambda name, moments, samples: (moments.mean, moments.variance))
        else:
            for layer in layers.values():
                layer.train()
            found = sweep.one_pass()
        before.restore(layers)
        for name, moments in found.items():
            set_running_statistics(name, layers[name], moments, sweep.seen)
    if not found:
        raise ValueError("there were no batches, or none that reached a batch norm: nothing was changed")
    converged = None if tolerance is None else all(sweep.stopped)
    unused = tuple(name for name in layers if name not in found)
    return Calibration(layers, before, Populations.of(layers), sweep.seen, sweep.passes, converged, unused)


def set_running_statistics(name: str, layer: _BatchNorm, moments: Moments, batches: int) -> None:
    """Set a layer's running statistics to `moments`, with the unbiased variance as in training."""
    if bool(torch.as_tensor(moments.count <= 1).any()):
        raise ValueError(f"{name} saw one value per channel in all the data: one value has no variance")
    write(layer, moments.mean, moments.unbiased_variance)
    if (tracked := bank(layer).num_batches_tracked) is not None:
        tracked.fill_(batches)


def shift(before: tuple[Tensor, Tensor, Any], after: tuple[Tensor, Tensor, Any]) -> float:
    """The largest change of a channel's mean, in units of its σ after the change."""
    tiny = torch.finfo(torch.float32).tiny
    return ((after[0] - before[0]).abs().double() / after[1].double().clamp(min=tiny).sqrt()).max().item()
