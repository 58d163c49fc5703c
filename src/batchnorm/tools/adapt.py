"""Adapt a trained model to a new domain from unlabelled inputs. The change can be undone."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.core.moments import Moments
from batchnorm.tools.calibrate import shift
from batchnorm.tools.model_populations import Populations, bank, evaluating, populations, unless_finished, write
from batchnorm.tools.sweep import Feed, Sweep, feed_by_default


@dataclass
class Adaptation:
    """The result of `adapt`; `restore` undoes it.

    `entropy` is the mean entropy of the predictions per batch, in nats, if it was minimised; `drift` is
    ‖change‖ / ‖start‖ of γ and β; `resets` counts how often they were set back to the start.
    """

    layers: dict[str, _BatchNorm]
    before: Populations
    after: Populations
    affine: dict[Tensor, Tensor]  # γ and β, and their values before
    samples: int
    entropy: list[float]
    drift: float = 0.0
    resets: int = 0

    def restore(self) -> None:
        """Put the running statistics, γ and β back to their values from before, bit for bit."""
        self.before.restore(self.layers)
        _reset(self.affine)

    @property
    def shift(self) -> dict[str, float]:
        """Per layer, the largest change of a channel's mean, in σ: a measure of the domain shift."""
        return {name: shift(self.before.values[name], self.after.values[name]) for name in self.layers}


def adapt(
    model: nn.Module,
    batches: Any,
    prior: float = 16,
    *,
    online: bool = False,
    entropy: bool = False,
    lr: float = 1e-3,
    max_drift: float = 0.2,
    feed: Feed = feed_by_default,
    limit: int | None = None,
    process_group: Any = None,
    progress: bool | None = None,
) -> Adaptation:
    """Blend the running statistics of every batch norm with those of unlabelled data from a new domain.

    With n samples of the new domain, each statistic s (mean and variance) becomes
    N/(N + n)·s_old + n/(N + n)·s_new, where N is the `prior`: how many samples the old statistics are worth. All
    batches together count as one, and the layers are adapted level by level as in `calibrate` (the layers before a
    layer normalise by their blended statistics). With ``online=True`` the batches are blended in one by one, as in a
    moving average, in a single pass; a batch of one sample has the weight 1/(N + 1).

    With ``entropy=True`` γ and β are then trained to minimise the mean entropy of the softmax of the model's output
    (dimension 1), with one step of gradient descent per batch (TENT). If they have changed by more than `max_drift` of
    their norm, or the entropy is not finite, they are set back to their values at the start.

    Args:
        model: its running statistics change in place; with `entropy` γ and β too.
        prior: N ≥ 0; 0 takes the new statistics alone.
        online: True to blend batch after batch, in one pass.
        entropy: True to train γ and β as well.
        max_drift: the largest ‖change‖ / ‖start‖ of γ and β.
        lr: the learning rate of the gradient descent, which has momentum 0.9.
        batches, feed, limit, process_group, progress: as in `calibrate`; ranks share statistics only.

    Returns:
        An `Adaptation`: before, after, `restore()`.

    Raises:
        TypeError: a single batch in place of batches.
        ValueError: a negative prior, no batches, nothing to adapt, ranks together with `online` or `entropy`.
        FloatingPointError: NaN or Inf in the input of a layer. After it, or an interrupt, the model is as before.

    Examples:
        >>> import torch, batchnorm as bn
        >>> layer = bn.BatchNorm(1).eval()  # mean 0
        >>> adaptation = bn.adapt(layer, [torch.full((4, 1), 3.0)], prior=8)
        >>> layer.running_mean.item()
        1.0
        >>> adaptation.restore()

    Source: Schneider et al. 2020, "Improving robustness against common corruptions by covariate shift adaptation"
    (arXiv:2006.16971), equation 3; Wang et al. 2021, "Tent" (arXiv:2006.10726), section 3.
    """
    layers = populations(model)
    if prior < 0:
        raise ValueError(f"prior must be at least 0 samples, got {prior}")
    if process_group is not None and (online or entropy):
        raise ValueError("online and entropy do not work with process_group, which shares statistics only")
    if not layers:
        raise ValueError("the model has no batch norm with running statistics to adapt: it has none, or all are frozen")
    sweep = Sweep(model, layers, batches, feed, limit, None, process_group, progress)
    if entropy:
        sweep.check_passes("entropy=True needs")
    affine = {p: p.detach().clone() for layer in layers.values() for p in _affine(layer)}
    done = Adaptation(layers, Populations.of(layers), Populations.of(layers), affine, 0, [])
    try:
        with unless_finished(layers), evaluating(model):
            done.samples = _one_by_one(sweep, prior) if online else _all_at_once(sweep, prior)
            if not done.samples:
                raise ValueError("there were no batches: nothing was adapted")
            if entropy:
                _descend(sweep, done, lr, max_drift)
    except BaseException:
        _reset(affine)
        raise
    done.after = Populations.of(layers)
    return done


def _all_at_once(sweep: Sweep, prior: float) -> int:
    old = {
        name: (bank(layer).running_mean.clone(), bank(layer).running_var.clone())
        for name, layer in sweep.layers.items()
    }
    seen = dict.fromkeys(sweep.layers, 0)

    def settle(name: str, moments: Moments, samples: int) -> tuple[Tensor, Tensor]:
        seen[name] = max(seen[name], samples)
        return _blend(old[name], moments, samples, prior)

    found = sweep.level_by_level(settle)
    for name, layer in sweep.layers.items():
        write(layer, *(_blend(old[name], found[name], seen[name], prior) if name in found else old[name]))
    return max(seen.values())


def _one_by_one(sweep: Sweep, prior: float) -> int:
    """Each layer blends in the statistics of a batch just before it normalises that batch."""
    seen = dict.fromkeys(sweep.layers, 0)

    def before(name: str, layer: _BatchNorm, moments: Moments, samples: int) -> None:
        at = bank(layer)
        write(layer, *_blend((at.running_mean, at.running_var), moments, samples, prior))
        seen[name] += samples

    sweep.each_batch(before)
    return max(seen.values())


def _blend(old: tuple[Tensor, Tensor], new: Moments, samples: int, prior: float) -> tuple[Tensor, Tensor]:
    share = samples / (prior + samples) if samples else 0.0
    return tuple(o + (n.to(o.device) - o.double()) * share for o, n in zip(old, (new.mean, new.variance), strict=True))  # type: ignore[return-value]


def _affine(layer: _BatchNorm) -> list[Tensor]:
    at = bank(layer) if getattr(bank(layer), "affine", False) else layer
    return [p for p in (at.weight, at.bias) if p is not None]


def _descend(sweep: Sweep, done: Adaptation, lr: float, max_drift: float) -> None:
    """Entropy minimisation of γ and β by gradient descent with momentum; no `.grad` is changed."""
    wanted = [(p, p.requires_grad) for p in sweep.model.parameters()]
    parameters = list(done.affine)
    speed = [torch.zeros_like(p) for p in parameters]
    try:
        for p, _ in wanted:
            p.requires_grad_(p in done.affine)
        for batch in sweep.stream():
            with torch.enable_grad():
                value = _entropy(sweep.feed(sweep.model, batch))
                grads = torch.autograd.grad(value, parameters, allow_unused=True)
            with torch.no_grad():
                for parameter, v, g in zip(parameters, speed, grads, strict=True):
                    parameter -= lr * v.mul_(0.9).add_(0 if g is None else g)
            done.entropy.append(value.item())
            done.drift = _drift(done.affine)
            if not done.drift <= max_drift:  # NaN too
                _reset(done.affine)
                speed = [torch.zeros_like(p) for p in parameters]
                done.resets, done.drift = done.resets + 1, 0.0
    finally:
        for p, flag in wanted:
            p.requires_grad_(flag)


def _entropy(logits: Any) -> Tensor:
    if not isinstance(logits, Tensor) or logits.dim() < 2:
        raise ValueError("entropy needs a model (or feed) that returns logits of shape (N, classes, *)")
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()


def _drift(affine: dict[Tensor, Tensor]) -> float:
    apart = sum((p.detach() - old).double().square().sum().item() for p, old in affine.items())
    return (apart / max(sum(old.double().square().sum().item() for old in affine.values()), 1e-12)) ** 0.5


def _reset(affine: dict[Tensor, Tensor]) -> None:
    with torch.no_grad():
        for p, old in affine.items():
            p.copy_(old)
